{{- define "etameter.name" -}}
{{- if contains "etameter" .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-etameter" .Release.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "etameter.selector" -}}
app.kubernetes.io/name: etameter
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "etameter.labels" -}}
{{ include "etameter.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* An image of etameter's own goes with the chart unless its tag says otherwise: list of the image and the root. */}}
{{- define "etameter.image" -}}
{{- $image := index . 0 }}{{ $root := index . 1 -}}
image: {{ printf "%s:%s" $image.repository ($image.tag | default $root.Chart.AppVersion) | quote }}
imagePullPolicy: {{ $image.pullPolicy | default "IfNotPresent" }}
{{- end }}

{{- define "etameter.confined" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* What the meter is told, wherever it runs. */}}
{{- define "etameter.environment" -}}
- {name: HOME, value: /data}
- {name: USER, value: etameter}
- {name: ETAMETER_RUN, value: /run/etameter}
- {name: ETAMETER_RING_DIR, value: /run/etameter}
- {name: ETAMETER_STATE, value: /data/state}
- {name: ETAMETER_METER__HOST, value: 0.0.0.0}
- {name: ETAMETER_METER__PORT, value: {{ .Values.meter.port | quote }}}
{{- with .Values.meter.receiptToken }}{{ if .secret }}
- name: ETAMETER_METER__RECEIPT_TOKEN
  valueFrom: {secretKeyRef: {name: {{ .secret }}, key: {{ .key }}}}
{{- end }}{{ end }}
{{- end }}

{{/* Ready once both servers answer. The meter is asked until it has said yes once. */}}
{{- define "etameter.ready" -}}
import pathlib, urllib.request as u
u.urlopen("http://127.0.0.1:{{ .Values.engine.port }}/health", timeout=4)
seen = pathlib.Path("/tmp/etameter-ready")
seen.exists() or (u.urlopen("http://127.0.0.1:{{ .Values.meter.port }}/ready", timeout=4), seen.touch())
{{- end }}

{{- define "etameter.volume" -}}
{{- if .claim }}persistentVolumeClaim: {claimName: {{ .claim }}}{{ else }}emptyDir: {sizeLimit: {{ .size }}}{{ end }}
{{- end }}
