"""The CSI adapter: serves a volkit backend as a Container Storage Interface driver over gRPC."""
