{{/* A line for each value that is set and has no effect. */}}
{{- define "skyhook.withoutEffect" -}}
{{- range $path, $why := .Files.Get "accepted.yaml" | fromYaml }}
{{- $at := $.Values }}
{{- range splitList "." $path }}
{{- $at = ternary (get $at .) nil (and (kindIs "map" $at) (hasKey $at .)) }}
{{- end }}
{{- if not (kindIs "invalid" $at) }}
{{ $path }} has no effect, because {{ $why }}.
{{- end }}
{{- end }}
{{- end }}
