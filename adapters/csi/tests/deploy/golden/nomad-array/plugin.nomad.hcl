# The driver on every client: nomad job run plugin.nomad.hcl
job "volkit-array-node" {
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

        # devices come and go while it runs
        mount {
          type   = "bind"
          source = "/dev"
          target = "/dev"
        }
      }

      csi_plugin {
        id        = "array"
        type      = "node"
        mount_dir = "/csi"
      }

      env {
        VOLKIT_BACKEND    = "array"
        VOLKIT_SERVICES   = "node"
        VOLKIT_ENDPOINT   = "unix:///csi/csi.sock"
        VOLKIT_NODE_ID    = "${attr.unique.hostname}"
        VOLKIT_LOG_LEVEL  = "info"
        VOLKIT_LOG_FORMAT = "json"
        VOLKIT_OPTION_ENDPOINT = "https://array.example.com"
        VOLKIT_OPTION_CA = "${NOMAD_SECRETS_DIR}/ca"
      }

      # nomad var put nomad/jobs/volkit-array-node token=@FILE ca=@/etc/array/ca.pem

      template {
        destination = "${NOMAD_SECRETS_DIR}/options.env"
        env         = true
        data        = <<-EOT
          {{ with nomadVar "nomad/jobs/volkit-array-node" }}
          {{ with .token }}VOLKIT_OPTION_TOKEN={{ . | toJSON }}{{ end }}
          {{ with .password }}VOLKIT_OPTION_PASSWORD={{ . | toJSON }}{{ end }}
          {{ end }}
        EOT
      }

      template { # the file that the setting ca names
        destination = "${NOMAD_SECRETS_DIR}/ca"
        data        = <<-EOT
          {{ with nomadVar "nomad/jobs/volkit-array-node" }}{{ .ca }}{{ end }}
        EOT
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
