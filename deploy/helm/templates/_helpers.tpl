{{- define "conversations.fullname" -}}
{{- $name := ternary .Release.Name (printf "%s-conversations" .Release.Name) (contains "conversations" .Release.Name) -}}
{{- default $name .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "conversations.selector" -}}
app.kubernetes.io/name: conversations
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "conversations.labels" -}}
{{ include "conversations.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "conversations.image" -}}
{{- $tag := default .Chart.AppVersion .Values.image.tag -}}
{{- $suffix := ternary (printf "@%s" .Values.image.digest) (printf ":%s" $tag) (ne .Values.image.digest "") -}}
{{- .Values.image.repository }}{{ $suffix -}}
{{- end -}}

{{/* The settings: those of the chart, and above them those of the values. */}}
{{- define "conversations.settings" -}}
{{- $identity := default "none" .Values.settings.identity -}}
{{- if and (eq $identity "none") (ne (toString .Values.settings.allow_anonymous) "true") -}}
{{- fail "settings.identity: say who callers are: jwt, mtls or proxy; or set settings.allow_anonymous" -}}
{{- end -}}
{{- $own := dict
      "profile" "prod"
      "listen" "0.0.0.0:50051"
      "metrics_listen" "0.0.0.0:9464"
      "policy_file" "/etc/conversations/policy/policy.yaml"
      "retention_file" "/etc/conversations/policy/retention.yaml"
      "pool_size" 10
      "grace_seconds" 10
      "migrate" (not .Values.migration.enabled) -}}
{{- if .Values.tls.enabled -}}
{{- $_ := set $own "tls_certificate" "/etc/conversations/tls/tls.crt" -}}
{{- $_ := set $own "tls_key" "/etc/conversations/tls/tls.key" -}}
{{- if .Values.tls.clientCertificates -}}
{{- $_ := set $own "tls_client_ca" "/etc/conversations/tls/ca.crt" -}}
{{- end -}}
{{- end -}}
{{- if .Values.http.enabled -}}
{{- $_ := set $own "http_listen" "0.0.0.0:8080" -}}
{{- end -}}
{{- range $name, $value := merge (deepCopy .Values.settings) $own }}
CONVERSATIONS_{{ upper $name }}: {{ ternary (int64 $value | toString) (toString $value) (kindIs "float64" $value) | quote }}
{{- end -}}
{{- end -}}

{{- define "conversations.environment" -}}
- name: CONVERSATIONS_DATABASE_URL
  valueFrom:
    secretKeyRef:
      name: {{ .Values.database.secretName }}
      key: {{ .Values.database.key }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* What every pod has: no rights, and no links of services, whose variables would look like settings. */}}
{{- define "conversations.pod" -}}
serviceAccountName: {{ include "conversations.fullname" . }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  seccompProfile:
    type: RuntimeDefault
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{- define "conversations.locked" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}
