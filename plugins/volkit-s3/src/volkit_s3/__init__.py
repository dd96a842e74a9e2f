"""The S3 backend: buckets and prefixes of any S3-compatible store, mounted by FUSE programs."""
