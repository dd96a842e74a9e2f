"""The local backend: file volumes as directories of a node, with quotas and snapshots where its file system can."""
