{{- define "insync.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "insync.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "insync.labels" -}}
{{ include "insync.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "insync.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "insync.adminSecret" -}}
{{ .Values.adminSecret | default (printf "%s-admin" (include "insync.name" .)) }}
{{- end }}

{{- define "insync.podSecurity" -}}
runAsNonRoot: true
runAsUser: 1000
runAsGroup: 1000
fsGroup: 1000
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "insync.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "insync.scheduling" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity: {{ toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "insync.volumes" -}}
- name: twins
  persistentVolumeClaim: {claimName: {{ .Values.twins.existingClaim | default (printf "%s-twins" (include "insync.name" .)) }}}
- name: plans
  persistentVolumeClaim: {claimName: {{ .Values.plans.existingClaim | default (printf "%s-plans" (include "insync.name" .)) }}}
- name: shared-memory
  emptyDir: {medium: Memory, sizeLimit: {{ .Values.sharedMemory }}}
- name: scratch
  emptyDir: {sizeLimit: {{ .Values.scratch }}}
- name: tmp
  emptyDir: {sizeLimit: 256Mi}
{{- end }}

{{- define "insync.mounts" -}}
- {name: twins, mountPath: /twins}
- {name: plans, mountPath: /plans}
- {name: shared-memory, mountPath: /dev/shm}
- {name: scratch, mountPath: /run/insync}
- {name: tmp, mountPath: /tmp}
{{- end }}
