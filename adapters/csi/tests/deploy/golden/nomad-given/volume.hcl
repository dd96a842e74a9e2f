# nomad volume register volume.hcl, with the id that the volume has in the storage
id        = "data"
name      = "data"
type      = "csi"
plugin_id = "given"

external_id = "data"

capability {
  access_mode     = "multi-node-multi-writer"
  attachment_mode = "file-system"
}
