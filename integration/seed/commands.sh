#!/usr/bin/env bash
# What the README tells users to type, from "Install" on, word for word but for this:
# - the chart comes from CHART_REPOSITORY at CHART_VERSION
# - `helm repo search` is `helm search repo`, which exists
# - ghcr.io is a registry of the harness without TLS, which the agents have to be told
# Needs KUBECONFIG, and a HOME with .docker/config.json.
set -euxo pipefail

# Add the Helm repository
helm repo add skyhook "$CHART_REPOSITORY"
helm repo update
helm search repo skyhook ## should show the latest version

# basic install
helm install skyhook skyhook/skyhook-operator \
    --version "$CHART_VERSION" \
    --namespace skyhook \
    --create-namespace \
    --set 'agent.insecureRegistries={ghcr.io}'

kubectl create secret generic node-init-secret \
    --from-file=.dockerconfigjson=${HOME}/.docker/config.json \
    --type=kubernetes.io/dockerconfigjson \
    --namespace skyhook

# Check that the operator is running
kubectl get pods -n skyhook
# or Wait for the deployment to be available first
kubectl wait --for=condition=Available deployment -l control-plane=controller-manager -n skyhook --timeout=300s
# Then wait for the operator pod to be ready
kubectl wait --for=condition=Ready pod -l control-plane=controller-manager -n skyhook --timeout=300s
# Verify the Ready condition
kubectl get pods -l control-plane=controller-manager -n skyhook -o jsonpath='{.items[0].status.conditions[?(@.type=="Ready")].status}'
# Verify the CRDs are installed
kubectl get crd | grep skyhook

# Verify packages are working
kubectl apply -f - <<END
apiVersion: skyhook.nvidia.com/v1alpha1
kind: Skyhook
metadata:
  name: skyhook-sample
spec:
  nodeSelectors:
    matchExpressions:
      - key: node-role.kubernetes.io/control-plane
        operator: DoesNotExist
  packages:
    something-important:
      version: 1.1.1
      image: ghcr.io/nvidia/skyhook-packages/shellscript
      configMap:
        apply.sh: |-
          #!/bin/bash
          echo "hello world" > /skyhook-hello-world
          sleep 10
        apply_check.sh: |-
          #!/bin/bash
          cat /skyhook-hello-world | wc -l | grep -q 1
          sleep 10
END
# Wait for the Skyhook to complete
kubectl wait --for=jsonpath='{.status.status}'=complete skyhook/skyhook-sample --timeout=300s
# Check the status
kubectl describe skyhook skyhook-sample

# Check overall status
kubectl get skyhooks
# View node state annotations for a specific Skyhook
kubectl get nodes -o jsonpath='{range .items[*]}{.metadata.name}{": "}{.metadata.annotations.skyhook\.nvidia\.com/nodeState_skyhook-sample}{"\n"}{end}'

# Delete all Skyhook resources first (REQUIRED before uninstall)
kubectl delete skyhooks --all --all-namespaces
# Then uninstall the chart
helm uninstall skyhook --namespace skyhook
