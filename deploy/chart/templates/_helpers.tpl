{{- define "hyperfleet.name" -}}
{{ .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "hyperfleet.fullname" -}}
{{- $name := include "hyperfleet.name" . -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- /* Names made from it have suffixes of at most 11 characters. */ -}}
{{ .Values.fullnameOverride | default $full | trunc 52 | trimSuffix "-" }}
{{- end }}

{{- define "hyperfleet.image" -}}
{{- with .Values.image -}}
{{ with .registry }}{{ trimSuffix "/" . }}/{{ end }}{{ .repository }}
{{- if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{/* Takes a list: the context and the component. */}}
{{- define "hyperfleet.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "hyperfleet.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* Takes a list: the context and the component. */}}
{{- define "hyperfleet.labels" -}}
{{- $root := index . 0 -}}
{{ include "hyperfleet.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: hyperfleet
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "hyperfleet.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default (include "hyperfleet.fullname" .) }}
{{- else -}}
{{ .Values.serviceAccount.name | default "default" }}
{{- end }}
{{- end }}

{{/* "true" if the release has its own PostgreSQL. */}}
{{- define "hyperfleet.builtIn" -}}
{{- if and .Values.database.postgresql.enabled (not .Values.database.external.enabled) }}true{{ end }}
{{- end }}

{{- define "hyperfleet.migration" -}}
{{ .Values.migration.mode | default (ternary "init" "hook" (eq (include "hyperfleet.builtIn" .) "true")) }}
{{- end }}

{{/* The Secret with the database's host, user and so on; empty if the settings have them. */}}
{{- define "hyperfleet.databaseSecret" -}}
{{- if include "hyperfleet.builtIn" . -}}
{{- /* A label of a StatefulSet's pods has its name and 11 more characters, at most 63 in all. */ -}}
{{ include "hyperfleet.fullname" . | trunc 41 | trimSuffix "-" }}-postgresql
{{- else -}}
{{ .Values.database.external.secretName }}
{{- end }}
{{- end }}

{{/* The password of the built-in PostgreSQL: the given one, the previous release's, or a new one. It is
     stored in the values, since each call would generate another. */}}
{{- define "hyperfleet.password" -}}
{{- $own := .Values.database.postgresql }}
{{- if not $own.password }}
{{- $secret := lookup "v1" "Secret" .Release.Namespace (include "hyperfleet.databaseSecret" .) }}
{{- $old := index ($secret.data | default dict) "db.password" | default "" | b64dec }}
{{- $_ := set $own "password" ($old | default (randAlphaNum 32)) }}
{{- end -}}
{{ $own.password }}
{{- end }}

{{/* The provider's document, and the name of its ConfigMap. */}}
{{- define "hyperfleet.schema" -}}
{{- $other := .Values.validationSchema }}
{{- .Values.provider.schema | default (ternary $other.content "" $other.enabled) }}
{{- end }}
{{- define "hyperfleet.schemaConfigMap" -}}
{{- $other := .Values.validationSchema }}
{{- if and $other.enabled $other.existingConfigMap (not .Values.provider.schema) -}}
{{ $other.existingConfigMap }}
{{- else if include "hyperfleet.schema" . -}}
{{ include "hyperfleet.fullname" . }}-schema
{{- end }}
{{- end }}
