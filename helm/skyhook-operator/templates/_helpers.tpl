{{- define "skyhook.name" -}}
{{ .Values.nameOverride | default "skyhook-operator" }}
{{- end }}

{{/* 40 characters at most: the suffixes of names need the rest. */}}
{{- define "skyhook.fullname" -}}
{{- $name := include "skyhook.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" (.Release.Name | trunc (int (sub 39 (len $name))) | trimSuffix "-") $name }}
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

{{- define "skyhook.metrics" -}}
{{ include "skyhook.fullname" . }}-metrics
{{- end }}

{{- define "skyhook.agent" -}}
{{ include "skyhook.fullname" . }}-agent
{{- end }}

{{/* The job that runs before the chart is uninstalled, and its account. */}}
{{- define "skyhook.cleanup" -}}
{{ include "skyhook.fullname" . }}-skyhook-cleanup
{{- end }}

{{/* The job that runs before an install where an uninstall has left CRDs that cannot end, and its account. */}}
{{- define "skyhook.removal" -}}
{{ include "skyhook.fullname" . }}-finish-removal
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

{{/* Secrets with registry credentials for packages, as a JSON list. */}}
{{- define "skyhook.packageSecrets" -}}
{{ append (.Values.agent.imagePullSecrets | default list) .Values.imagePullSecret | compact | uniq | toJson }}
{{- end }}

{{/* A number from a values file is a float, which templates print as 1e+06 from a million on. */}}
{{- define "skyhook.text" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) }}{{ int64 . }}{{ else }}{{ . }}{{ end }}
{{- end }}

{{/* "true" or nothing: a value that is true, false or auto; on GKE, and on OpenShift. */}}
{{- define "skyhook.resourceQuota" -}}
{{- $is := toString .Values.resourceQuota.enabled }}
{{- $gke := or (contains "-gke." .Capabilities.KubeVersion.Version) (.Capabilities.APIVersions.Has "networking.gke.io/v1") }}
{{- if or (eq $is "true") (and (eq $is "auto") $gke) }}true{{ end }}
{{- end }}

{{- define "skyhook.openshift" -}}
{{- $is := toString .Values.openshift }}
{{- if or (eq $is "true") (and (eq $is "auto") (.Capabilities.APIVersions.Has "security.openshift.io/v1")) }}true{{ end }}
{{- end }}

{{- define "skyhook.api" -}}
{{- with .Values.kubernetesApi.host }}
- name: KUBERNETES_SERVICE_HOST
  value: {{ . | quote }}
{{- end }}
{{- with .Values.kubernetesApi.port }}
- name: KUBERNETES_SERVICE_PORT
  value: {{ include "skyhook.text" . | quote }}
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
{{- if not (include "skyhook.openshift" .) }}
runAsUser: 10001
runAsGroup: 10001
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{/* The pod of a job of ours. Called with (dict "name" … "component" … "args" … "root" $). */}}
{{- define "skyhook.jobPod" -}}
{{- $manager := .root.Values.controllerManager.manager -}}
metadata:
  labels:
    app.kubernetes.io/component: {{ .component }}
    {{- include "skyhook.labels" .root | nindent 4 }}
spec:
  serviceAccountName: {{ .name }}
  {{- include "skyhook.pullSecrets" .root | nindent 2 }}
  {{- if .root.Values.useHostNetwork }}
  hostNetwork: true
  {{- end }}
  restartPolicy: Never
  securityContext: {{- include "skyhook.restricted" .root | nindent 4 }}
  # Every node may be cordoned, or not ready, and this has to run all the same.
  tolerations:
    - operator: Exists
  nodeSelector:
    kubernetes.io/os: linux
  containers:
    - name: {{ .component }}
      image: {{ include "skyhook.image" (dict "image" $manager.image "root" .root) }}
      imagePullPolicy: {{ $manager.image.pullPolicy }}
      args: {{- toYaml .args | nindent 8 }}
      env:
        - name: NAMESPACE
          valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
        - name: POD_NAME
          valueFrom: {fieldRef: {fieldPath: metadata.name}}
        {{- include "skyhook.api" .root | nindent 8 }}
      resources: {{- include "skyhook.resources" .root | nindent 8 }}
      securityContext: {{- toYaml $manager.containerSecurityContext | nindent 8 }}
{{- end }}
