#!/usr/bin/env bash
# Checks the Helm chart and writes kubernetes/insync.yaml, what it comes to with its own values: for clusters without Helm, and
# for tests, which need no Helm to hold it against Kubernetes' schemas. Run it after any change below helm/, or of envoy.yaml.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
cp envoy.yaml helm/insync/files/envoy.yaml
helm lint --strict --quiet helm/insync
for values in plans.job=true config=onnx_gpu config=default autoscaling.enabled=false serviceMonitor.enabled=true \
    networkPolicy.enabled=false twins.existingClaim=ours,plans.existingClaim=ours; do
    helm template insync helm/insync --set "$values" >/dev/null
done
digest="$(find helm/insync -type f | LC_ALL=C sort | xargs sha256sum | sha256sum | cut -c1-16)"
{
    echo "# Written by docker/render.sh from docker/helm/insync ($digest): change that, not this."
    echo "# The secret insync-admin has to be there: kubectl create secret generic insync-admin --from-literal=admin-key=KEY"
    helm template insync helm/insync --set adminSecret=insync-admin
} >kubernetes/insync.yaml.new
mv kubernetes/insync.yaml.new kubernetes/insync.yaml
