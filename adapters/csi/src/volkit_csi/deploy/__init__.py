"""What `volkit deploy` writes of a CSI driver: for Kubernetes (`cluster`), for Nomad, the PV of an existing volume.

The templates beside are the source: plain YAML and the Helm chart are two renderings of the same ones.
"""
