{{/* What the schema can't say in words that help. */}}
{{- define "etameter.check" -}}
{{- if not .Values.model }}{{ fail "model is not given: --set model=Qwen/Qwen3-8B" }}{{ end }}
{{- range .Values.args }}
{{- $option := regexFind "^--[a-z-]+" (. | replace "_" "-") }}
{{- if has $option (list "--model" "--host" "--port" "--uds" "--scheduler-cls") }}{{ fail (printf "args has %s, which is the chart's: leave it out (the port is engine.port, the model is model)" .) }}{{ end }}
{{- if has $option (list "--meter" "--no-meter" "--meter-port" "--meter-config" "--ledger" "--engine" "--simulate-gpu") }}{{ fail (printf "args has %s, which is the meter's: see the section meter of the values" .) }}{{ end }}
{{- if and (eq $.Values.meter.place "side-car") (hasPrefix "--data-parallel" $option) }}{{ fail (printf "args has %s: the side-car meters one engine, so take meter.place=engine" .) }}{{ end }}
{{- end }}
{{- if and .Values.ledger.claim (gt (int .Values.replicas) 1) }}{{ fail (printf "replicas is %v and ledger.claim %s: one ledger has one meter, so leave ledger.claim out or take one replica" .Values.replicas .Values.ledger.claim) }}{{ end }}
{{- if eq (int .Values.engine.port) (int .Values.meter.port) }}{{ fail (printf "engine.port and meter.port are both %v: they need one each" .Values.meter.port) }}{{ end }}
{{- if hasKey ($.Values.meter.config.meter | default dict) "receipt_token" }}{{ fail "meter.config.meter.receipt_token would lie in a ConfigMap: put it in a secret, and name that in meter.receiptToken.secret" }}{{ end }}
{{- range $section, $keys := dict "meter" (list "host" "port" "ledger" "simulate_gpu") "serve" (list "engine" "meter") }}
{{- range $keys }}{{ if hasKey (index $.Values.meter.config $section | default dict) . }}{{ fail (printf "meter.config.%s.%s is the chart's: leave it out" $section .) }}{{ end }}{{ end }}
{{- end }}
{{- end }}
