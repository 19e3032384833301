{{- define "skyhook.name" -}}
skyhook-operator
{{- end }}

{{- define "skyhook.fullname" -}}
{{- if contains "skyhook-operator" .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-skyhook-operator" (.Release.Name | trunc 23 | trimSuffix "-") }}
{{- end }}
{{- end }}

{{- define "skyhook.selector" -}}
app.kubernetes.io/name: {{ include "skyhook.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "skyhook.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "skyhook.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "skyhook.coordinator" -}}
{{ include "skyhook.fullname" . }}-controller-manager
{{- end }}

{{- define "skyhook.agent" -}}
{{ include "skyhook.fullname" . }}-agent
{{- end }}

{{/* The job that runs before the chart is uninstalled, and its account. */}}
{{- define "skyhook.cleanup" -}}
{{ include "skyhook.fullname" . }}-skyhook-cleanup
{{- end }}

{{/* The key of the taint that keeps pods off nodes until their packages are installed. */}}
{{- define "skyhook.runtimeRequiredKey" -}}
{{ regexReplaceAll "[=:].*$" .Values.controllerManager.manager.env.runtimeRequiredTaint "" }}
{{- end }}

{{/* The Role that the coordinator keeps: what Skyhooks refer to, by name. */}}
{{- define "skyhook.references" -}}
{{ include "skyhook.agent" . }}-references
{{- end }}

{{/* Called with (dict "image" … "root" $). The digest goes before the tag. */}}
{{- define "skyhook.image" -}}
{{- $tag := .image.tag | default .root.Chart.AppVersion }}
{{- if .image.digest }}
{{- printf "%s@%s" .image.repository .image.digest }}
{{- else }}
{{- printf "%s:%s" .image.repository $tag }}
{{- end }}
{{- end }}

{{- define "skyhook.pullSecrets" -}}
{{- with .Values.imagePullSecret }}
imagePullSecrets:
  - name: {{ . }}
{{- end }}
{{- end }}

{{- define "skyhook.api" -}}
{{- with .Values.kubernetesApi.host }}
- name: KUBERNETES_SERVICE_HOST
  value: {{ . | quote }}
{{- end }}
{{- with .Values.kubernetesApi.port }}
- name: KUBERNETES_SERVICE_PORT
  value: {{ . | quote }}
{{- end }}
{{- end }}

{{/* The measured coordinator needs 5 MiB and 2.5 KiB for each node and package; this leaves room. */}}
{{- define "skyhook.resources" -}}
{{- if .Values.controllerManager.manager.resources }}
{{- toYaml .Values.controllerManager.manager.resources }}
{{- else }}
{{- $work := mul (int .Values.estimatedNodeCount) (max 1 (int .Values.estimatedPackageCount)) -}}
requests:
  cpu: 50m
  memory: {{ max 64 (div $work 50) }}Mi
limits:
  memory: {{ max 256 (div $work 12) }}Mi
{{- end }}
{{- end }}

{{- define "skyhook.restricted" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
seccompProfile:
  type: RuntimeDefault
{{- end }}
