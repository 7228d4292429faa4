{{- define "hyperfleet.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "hyperfleet.labels" -}}
app.kubernetes.io/name: hyperfleet-api
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "hyperfleet.database" -}}
{{- range list "host" "port" "name" "user" "password" }}
- --db-{{ . }}-file=/etc/hyperfleet/database/db.{{ . }}
{{- end }}
- --db-sslmode={{ .Values.database.sslmode }}
{{- end }}

{{- define "hyperfleet.security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
{{- end }}
