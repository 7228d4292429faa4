{{/* The volumes of both the service and the migration. Takes a list: the context, and the name of the
     ConfigMap with the settings file. */}}
{{- define "hyperfleet.volumes" -}}
{{- $root := index . 0 }}
- name: config
  configMap: {name: {{ index . 1 }}}
{{- with include "hyperfleet.databaseSecret" $root }}
- name: database
  secret:
    secretName: {{ . }}
    defaultMode: 0440
    items:
      {{- $keys := ternary (dict) $root.Values.database.external.keys (eq (include "hyperfleet.builtIn" $root) "true") }}
      {{- $own := fromJson (include "hyperfleet.own" $root) }}
      {{- range list "host" "port" "name" "user" "password" }}
      {{- if hasKey $own (printf "db_%s_file" .) }}
      - {key: {{ get $keys . | default (printf "db.%s" .) }}, path: db.{{ . }}}
      {{- end }}
      {{- end }}
{{- end }}
- name: tmp
  emptyDir: {medium: Memory, sizeLimit: 64Mi}
{{- with $root.Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "hyperfleet.mounts" -}}
- {name: config, mountPath: /etc/hyperfleet/config.yaml, subPath: config.yaml, readOnly: true}
{{- if include "hyperfleet.databaseSecret" . }}
- {name: database, mountPath: /etc/hyperfleet/database, readOnly: true}
{{- end }}
- {name: tmp, mountPath: /tmp}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The environment variables, without duplicates: those in the values replace the chart's own. */}}
{{- define "hyperfleet.env" -}}
{{- $given := dict }}
{{- $more := concat (.Values.env | default list) (.Values.extraEnv | default list) }}
{{- range $more }}{{ $_ := set $given .name . }}{{ end }}
{{- range fromYamlArray (include "hyperfleet.ownEnv" .) }}
{{- if not (hasKey $given .name) }}
- {name: {{ .name }}, value: {{ .value | quote }}}
{{- end }}
{{- end }}
{{- range $more }}
{{- with get $given .name }}
{{ list . | toYaml }}
{{- $_ := unset $given .name }}
{{- end }}
{{- end }}
{{- end }}

{{- define "hyperfleet.ownEnv" -}}
{{- if .Values.config.existingConfigMap }}
{{- range $name, $value := fromJson (include "hyperfleet.own" .) }}
- {name: HYPERFLEET_{{ upper $name }}, value: {{ $value | toString | quote }}}
{{- end }}
{{- end }}
{{- with mergeOverwrite (deepCopy .Values.tracing) (.Values.monitoring.tracing | default dict) }}
- {name: HYPERFLEET_TRACING_ENABLED, value: {{ .enabled | quote }}}
{{- if .enabled }}
- {name: OTEL_SERVICE_NAME, value: {{ .serviceName | quote }}}
{{- with .otlpEndpoint }}
- {name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ . | quote }}}
{{- end }}
- {name: OTEL_EXPORTER_OTLP_PROTOCOL, value: {{ .otlpProtocol | quote }}}
- {name: OTEL_TRACES_SAMPLER, value: {{ .sampler | quote }}}
- {name: OTEL_TRACES_SAMPLER_ARG, value: {{ .samplerArg | quote }}}
- {name: OTEL_PROPAGATORS, value: {{ .propagators | quote }}}
{{- end }}
{{- end }}
{{- end }}

{{- define "hyperfleet.container" -}}
image: {{ include "hyperfleet.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext: {{- toYaml .Values.securityContext | nindent 2 }}
env: {{- include "hyperfleet.env" . | trim | nindent 2 }}
{{- with .Values.extraEnvFrom }}
envFrom: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "hyperfleet.migrate" -}}
name: migrate
args:
  - migrate
  {{- if .Values.migration.refold }}
  - --refold
  {{- end }}
{{ include "hyperfleet.container" . }}
resources: {{- toYaml .Values.migration.resources | nindent 2 }}
volumeMounts: {{- include "hyperfleet.mounts" . | trim | nindent 2 }}
{{- end }}

{{/* Where pods run, and with which access to the cluster. */}}
{{- define "hyperfleet.place" -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* PgBouncer, configured from the mounted Secret. As a native sidecar, it ends after the service. */}}
{{- define "hyperfleet.pgbouncer" -}}
{{- $found := fromJson (include "hyperfleet.given" .) }}
{{- $own := fromJson (include "hyperfleet.own" .) }}
name: pgbouncer
restartPolicy: Always
image: {{ .Values.pgbouncer.image | quote }}
command:
  - sh
  - -ec
  - |
    umask 077
    part() { cat /etc/hyperfleet/database/db.$1; }
    quoted() { part $1 | sed 's/"/""/g'; }
    printf '"%s" "%s"\n' "$(quoted user)" "$(quoted password)" >/tmp/users.txt
    cat >/tmp/pgbouncer.ini <<END
    [databases]
    * = host=$(part host) port=$(part port)
    [pgbouncer]
    listen_addr = 127.0.0.1
    listen_port = 6432
    unix_socket_dir =
    auth_type = scram-sha-256
    auth_file = /tmp/users.txt
    pool_mode = transaction
    server_login_retry = 1
    default_pool_size = {{ .Values.pgbouncer.poolSize }}
    max_client_conn = 1000
    server_tls_sslmode = {{ get $own "db_sslmode" | default (get $found "db_sslmode") | default (get $found "database_ssl_mode") }}
    {{- with get $found "db_rootcert" | default (get $found "database_ssl_root_cert_file") }}
    server_tls_ca_file = {{ . }}
    {{- end }}
    END
    exec pgbouncer /tmp/pgbouncer.ini
securityContext: {{- toYaml .Values.securityContext | nindent 2 }}
resources: {{- toYaml .Values.pgbouncer.resources | nindent 2 }}
volumeMounts:
  - {name: database, mountPath: /etc/hyperfleet/database, readOnly: true}
  - {name: pgbouncer, mountPath: /tmp}
  {{- with .Values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
