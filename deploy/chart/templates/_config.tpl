{{/* Flattens a tree as the service does: takes `in`, `prefix` and the dict `out` that it fills. */}}
{{- define "hyperfleet.flatten" -}}
{{- range $key, $value := .in }}
{{- $name := printf "%s%s" $.prefix ($key | replace "-" "_") }}
{{- if kindIs "map" $value }}
{{- include "hyperfleet.flatten" (dict "in" $value "prefix" (printf "%s_" $name) "out" $.out) }}
{{- else if and (not (kindIs "invalid" $value)) (not (and (kindIs "slice" $value) (not $value))) }}
{{- $_ := set $.out $name $value }}
{{- end }}
{{- end }}
{{- end }}

{{/* The settings of the service according to the values, as one flat mapping. */}}
{{- define "hyperfleet.given" -}}
{{- $found := dict }}
{{- if not .Values.config.existingConfigMap }}
{{- $tree := omit .Values.config "existingConfigMap" "existingConfigMapTLSEnabled" }}
{{- include "hyperfleet.flatten" (dict "in" $tree "prefix" "" "out" $found) }}
{{- include "hyperfleet.flatten" (dict "in" .Values.settings "prefix" "" "out" $found) }}
{{- /* Names from versions of the original that had a single issuer. */}}
{{- range $old, $new := dict "audience" "jwt_audiences" "issuer_url" "jwt_issuers" "identity_claim" "identity_claims" }}
{{- $value := get $found (printf "server_jwt_%s" $old) }}
{{- $_ := unset $found (printf "server_jwt_%s" $old) }}
{{- if and $value (not (hasKey $found $new)) }}{{ $_ := set $found $new (list $value) }}{{ end }}
{{- end }}
{{- with .Values.auth }}
{{- if not .enableJwt }}{{ $_ := set $found "enable_jwt" false }}{{ end }}
{{- if .enableAuthz }}{{ $_ := set $found "enable_authz" true }}{{ end }}
{{- if and .jwksUrl (not (hasKey $found "jwk_cert_url")) }}{{ $_ := set $found "jwk_cert_url" .jwksUrl }}{{ end }}
{{- if and .audiences (not (include "hyperfleet.whoMay" (list $ $found))) }}
{{- $_ := set $found "jwt_audiences" .audiences }}
{{- end }}
{{- end }}
{{- range $kind, $names := .Values.adapters }}
{{- $name := printf "required_adapters_%s" $kind }}
{{- if and $names (not (hasKey $found $name)) }}{{ $_ := set $found $name $names }}{{ end }}
{{- end }}
{{- end }}
{{- toJson $found }}
{{- end }}

{{/* Whether a boolean setting is on under any of its names. Takes a list: the mapping, the default, the names. */}}
{{- define "hyperfleet.on" -}}
{{- $found := index . 0 }}{{ $on := index . 1 }}
{{- range slice . 2 }}
{{- if hasKey $found . }}{{ $on = eq (get $found . | toString) "true" }}{{ end }}
{{- end }}
{{- if $on }}true{{ end }}
{{- end }}

{{/* The names of the environment variables, each between blanks. */}}
{{- define "hyperfleet.variables" -}}
{{- range concat (.Values.env | default list) (.Values.extraEnv | default list) }} {{ .name }} {{ end }}
{{- end }}

{{/* The issuers that have their own settings, as a JSON list. Takes the mapping. */}}
{{- define "hyperfleet.issuers" -}}
{{- concat (get . "server_jwt_configs" | default list) (get . "jwt_configs" | default list) | toJson }}
{{- end }}

{{/* What limits who gets in, besides the keys; empty if nothing does. Takes a list: the context and the mapping. */}}
{{- define "hyperfleet.whoMay" -}}
{{- $found := index . 1 }}
{{- range list "jwt_audiences" "acl_file" "server_acl_file" }}{{ with get $found . }}{{ toString . }}{{ end }}{{ end }}
{{- include "hyperfleet.on" (list $found false "server_authz_enabled" "enable_authz") }}
{{- include "hyperfleet.on" (list $found false "any_caller") }}
{{- /* The audience of an issuer does not limit tokens of another. */}}
{{- $issuers := fromJsonArray (include "hyperfleet.issuers" $found) }}{{ $open := empty $issuers }}
{{- range $issuers }}{{ if not .audience }}{{ $open = true }}{{ end }}{{ end }}
{{- if not $open }}audiences{{ end }}
{{- regexFind " HYPERFLEET_(JWT_AUDIENCES|(SERVER_)?ACL_FILE|ENABLE_AUTHZ|SERVER_AUTHZ_ENABLED|ANY_CALLER) " (include "hyperfleet.variables" (index . 0)) }}
{{- end }}

{{/* The settings that the chart itself makes: ports, and where the database and the document are. */}}
{{- define "hyperfleet.own" -}}
{{- $found := fromJson (include "hyperfleet.given" .) }}
{{- $own := dict "host" "0.0.0.0" "port" .Values.ports.api "health_port" .Values.ports.health "metrics_port" .Values.ports.metrics }}
{{- range list "host" "server_host" }}{{ if hasKey $found . }}{{ $_ := unset $own "host" }}{{ end }}{{ end }}
{{- if include "hyperfleet.databaseSecret" . }}
{{- range list "host" "port" "name" "user" "password" }}
{{- if not (or (hasKey $found (printf "db_%s" .)) (hasKey $found (printf "db_%s_file" .))) }}
{{- $_ := set $own (printf "db_%s_file" .) (printf "/etc/hyperfleet/database/db.%s" .) }}
{{- end }}
{{- end }}
{{- end }}
{{- if include "hyperfleet.builtIn" . }}{{ $_ := set $own "db_sslmode" "disable" }}
{{- else if not (or (hasKey $found "db_sslmode") (hasKey $found "database_ssl_mode") (not (include "hyperfleet.databaseSecret" .))) }}
{{- $_ := set $own "db_sslmode" .Values.database.external.sslMode }}
{{- end }}
{{- if include "hyperfleet.schemaConfigMap" . }}
{{- $_ := set $own "openapi_schema_path" "/etc/hyperfleet/schemas/openapi.yaml" }}
{{- end }}
{{- toJson $own }}
{{- end }}

{{/* The settings file. For the database, the Secret takes precedence over the names of the original's file. */}}
{{- define "hyperfleet.configFile" -}}
{{- $found := fromJson (include "hyperfleet.given" .) }}
{{- if include "hyperfleet.databaseSecret" . }}
{{- $found = omit $found "database_host" "database_port" "database_name" "database_username" }}
{{- end }}
{{- $found = omit $found "server_port" "port" }}
{{- toYaml (merge (fromJson (include "hyperfleet.own" .)) $found) }}
{{- end }}

{{/* The seconds in a number or a duration, in the formats that the service accepts: 90, 1m30s. */}}
{{- define "hyperfleet.seconds" -}}
{{- $units := dict "h" 3600.0 "m" 60.0 "s" 1.0 "ms" 0.001 }}
{{- $sum := 0.0 }}
{{- range regexFindAll "[0-9.]+[a-z]*" (toString .) -1 }}
{{- $unit := get $units (regexFind "[a-z]+" .) | default 1.0 }}
{{- $sum = addf $sum (mulf (regexFind "[0-9.]+" . | float64) $unit) }}
{{- end }}
{{- $sum }}
{{- end }}

{{/* Fails if the service would not start, or a secret would be exposed. */}}
{{- define "hyperfleet.check" -}}
{{- $found := fromJson (include "hyperfleet.given" .) }}
{{- range list "db_password" "database_password" "ocm_client_secret" "database_url" "read_database_url" }}
{{- if get $found . }}
{{- fail (printf "settings: %s contains a secret, but settings are stored in a ConfigMap. Put it in a Secret, mount the Secret with extraVolumes, and set %s-file to the file." (. | replace "_" "-") (. | replace "_" "-" | replace "database-password" "db-password")) }}
{{- end }}
{{- end }}
{{- range $kind, $names := dict "api" (list "server_port" "port") "health" (list "health_port") "metrics" (list "metrics_port") }}
{{- range $names }}
{{- if and (hasKey $found .) (ne (get $found . | toString) (get $.Values.ports $kind | toString)) }}
{{- fail (printf "The %s port is set by ports.%s; omit it in settings and config, or make them equal." $kind $kind) }}
{{- end }}
{{- end }}
{{- end }}
{{- with .Values.ports }}
{{- if lt (len (uniq (list (int .api) (int .health) (int .metrics)))) 3 }}
{{- fail "ports.api, ports.health and ports.metrics must differ." }}
{{- end }}
{{- end }}
{{- with .Values.validationSchema }}
{{- if and .enabled (not .existingConfigMap) (not .content) (not $.Values.provider.schema) }}
{{- fail "validationSchema.enabled needs validationSchema.existingConfigMap or validationSchema.content; otherwise nothing would be validated." }}
{{- end }}
{{- end }}
{{- with .Values.autoscaling }}
{{- if and .enabled (gt (int .minReplicas) (int .maxReplicas)) }}
{{- fail "autoscaling.maxReplicas must not be less than autoscaling.minReplicas." }}
{{- end }}
{{- if and .enabled (not .targetCPUUtilizationPercentage) (not .targetMemoryUtilizationPercentage) }}
{{- fail "autoscaling.enabled needs autoscaling.targetCPUUtilizationPercentage or autoscaling.targetMemoryUtilizationPercentage." }}
{{- end }}
{{- end }}
{{- if and .Values.database.external.secretName (not .Values.database.external.enabled) }}
{{- fail "database.external.secretName is set but not used: set database.external.enabled=true." }}
{{- end }}
{{- $variables := include "hyperfleet.variables" . }}
{{- if not (include "hyperfleet.databaseSecret" .) }}
{{- $named := or .Values.config.existingConfigMap .Values.extraEnvFrom (regexMatch " HYPERFLEET_(DATABASE|DB)_" $variables) }}
{{- range list "database_url_file" "db_host" "db_host_file" "database_host" "database_host_file" }}
{{- $named = or $named (hasKey $found .) }}
{{- end }}
{{- if not $named }}
{{- fail "No database is configured: set database.external.enabled=true and database.external.secretName, or database.postgresql.enabled=true to try the chart out." }}
{{- end }}
{{- end }}
{{- $second := regexFind "HYPERFLEET_DATABASE_URL(_FILE)?" $variables }}
{{- if hasKey $found "database_url_file" }}{{ $second = "database-url-file" }}{{ end }}
{{- if include "hyperfleet.builtIn" . }}
{{- $second = $second | default (regexFind "HYPERFLEET_(DATABASE|DB)_HOST(_FILE)?" $variables) }}
{{- range list "db_host" "db_host_file" }}{{ if hasKey $found . }}{{ $second = replace "_" "-" . }}{{ end }}{{ end }}
{{- if $second }}
{{- fail (printf "Two databases are configured: by %s, and the built-in one. Set database.external.enabled=true to use the former." $second) }}
{{- end }}
{{- end }}
{{- if and $second (include "hyperfleet.databaseSecret" .) }}
{{- fail (printf "The database is configured twice: by %s and by database.external.secretName. Omit one of them." $second) }}
{{- end }}
{{- $own := fromJson (include "hyperfleet.own" .) }}
{{- range list "host" "port" "user" "password" }}
{{- if and $.Values.pgbouncer.enabled (not (hasKey $own (printf "db_%s_file" .))) }}
{{- fail (printf "With pgbouncer.enabled, the database's %s must come from database.external.secretName: omit it in settings." .) }}
{{- end }}
{{- end }}
{{- if and .Values.ingress.enabled (not (and .Values.ingress.host .Values.ingress.tlsSecretName)) }}
{{- fail "ingress.enabled needs ingress.host and ingress.tlsSecretName: tokens must not be sent unencrypted." }}
{{- end }}
{{- $timeout := get $found "shutdown_timeout" | default (get $found "health_shutdown_timeout") | default 20 }}
{{- $seconds := .Values.preStopSeconds }}
{{- range list $timeout (get $found "shutdown_delay") }}
{{- $seconds = addf $seconds (include "hyperfleet.seconds" . | float64) }}
{{- end }}
{{- if le (float64 .Values.terminationGracePeriodSeconds) $seconds }}
{{- fail (printf "terminationGracePeriodSeconds must exceed %.0f, the sum of preStopSeconds, shutdown-delay and shutdown-timeout." $seconds) }}
{{- end }}
{{- if not (or .Values.config.existingConfigMap .Values.extraEnvFrom) }}
{{- include "hyperfleet.checkAuth" (list . $found $variables) }}
{{- end }}
{{- end }}

{{- define "hyperfleet.checkAuth" -}}
{{- $found := index . 1 }}
{{- $variables := index . 2 }}
{{- $authz := include "hyperfleet.on" (list $found false "server_authz_enabled" "enable_authz") }}
{{- $required := include "hyperfleet.on" (list $found true "server_jwt_enabled" "enable_jwt") }}
{{- $off := include "hyperfleet.on" (list $found false "no_auth") }}
{{- if and $authz (not $required) (not $off) }}
{{- fail "enable-authz needs verified callers: do not turn off auth.enableJwt." }}
{{- end }}
{{- if and $authz $required (not $off) (not (regexMatch " HYPERFLEET_OCM_CLIENT_SECRET(_FILE)? " $variables)) (not (and (or (get $found "ocm_client_id") (get $found "ocm_client_id_file")) (get $found "ocm_client_secret_file"))) }}
{{- fail "enable-authz needs a client: set ocm-client-id-file and ocm-client-secret-file, and mount the files with extraVolumes." }}
{{- end }}
{{- if and $required (not $off) (not (regexMatch " HYPERFLEET_(JWK_|JWT_|SERVER_JW|NO_AUTH|ENABLE_JWT)" $variables)) }}
{{- $public := "https://sso.redhat.com/auth/realms/redhat-external/protocol/openid-connect/certs" }}
{{- $keys := $public }}
{{- if hasKey $found "server_jwk_cert_url" }}{{ $keys = get $found "server_jwk_cert_url" }}{{ end }}
{{- if hasKey $found "jwk_cert_url" }}{{ $keys = get $found "jwk_cert_url" }}{{ end }}
{{- $file := or (get $found "jwk_cert_file") (get $found "server_jwk_cert_file") }}
{{- $issuers := get $found "jwt_issuers" | default list }}
{{- if kindIs "string" $issuers }}{{ $issuers = splitList "," $issuers }}{{ end }}
{{- $configs := fromJsonArray (include "hyperfleet.issuers" $found) }}
{{- $common := and (empty $issuers) (empty $configs) }}{{ $trusted := and $common (eq $keys $public) }}
{{- range $issuers }}
{{- $own := contains "=" . }}
{{- if not $own }}{{ $common = true }}{{ end }}
{{- if or (hasSuffix (printf "=%s" $public) .) (and (not $own) (eq $keys $public)) }}{{ $trusted = true }}{{ end }}
{{- end }}
{{- range $configs }}
{{- $own := or .jwk_cert_url .jwk_cert_file }}
{{- if not $own }}{{ $common = true }}{{ end }}
{{- if and (not .audience) (eq $public (ternary (.jwk_cert_url | default "") $keys (not (empty $own)))) }}{{ $trusted = true }}{{ end }}
{{- end }}
{{- if and $common (not $keys) (not $file) }}
{{- fail "Nobody could get in: tokens are required, but there are no keys to verify them with. Set auth.jwksUrl or jwk-cert-file, or name the keys of each issuer in jwt-issuers." }}
{{- end }}
{{- if and $trusted (not (include "hyperfleet.whoMay" (list (index . 0) $found))) }}
{{- fail "Nothing limits who gets in, so the service would not start: set auth.audiences, acl-file or auth.enableAuthz, or set auth.jwksUrl to the keys of your own issuer. To let in everyone with an account at the public issuer, set settings.any-caller=true." }}
{{- end }}
{{- end }}
{{- end }}
