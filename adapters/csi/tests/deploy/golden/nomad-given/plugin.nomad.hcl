# The driver on every client: nomad job run plugin.nomad.hcl
job "volkit-given-node" {
  datacenters = ["*"]
  type        = "system"

  group "node" {
    task "driver" {
      driver = "docker"

      config {
        image        = "registry.example.com/driver:1.0"
        entrypoint   = ["volkit-csi"]
        privileged   = true # it mounts where Nomad and the other tasks see it
        network_mode = "host" # a mount's connection to the storage must outlive this task

        # what must survive a restart: connections, locks
        mount {
          type   = "bind"
          source = "/var/lib/volkit"
          target = "/var/lib/volkit"
        }
      }

      csi_plugin {
        id        = "given"
        type      = "node"
        mount_dir = "/csi"
      }

      env {
        VOLKIT_BACKEND    = "given"
        VOLKIT_SERVICES   = "node"
        VOLKIT_ENDPOINT   = "unix:///csi/csi.sock"
        VOLKIT_NODE_ID    = "${attr.unique.hostname}"
        VOLKIT_LOG_LEVEL  = "info"
        VOLKIT_LOG_FORMAT = "json"
        VOLKIT_HEADLESS   = "true" # no controller runs anywhere
      }

      user         = "root"
      kill_timeout = "40s" # the driver waits 30 seconds for calls that run

      resources {
        cpu        = 50
        memory     = 128
        memory_max = 1024
      }
    }
  }
}
