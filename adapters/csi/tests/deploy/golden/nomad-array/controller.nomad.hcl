# The controller, one of it: nomad job run controller.nomad.hcl
job "volkit-array-controller" {
  datacenters = ["*"]
  type        = "service"

  group "controller" {
    count = 1

    # the journal follows it
    ephemeral_disk {
      sticky  = true
      migrate = true
    }

    task "driver" {
      driver = "docker"

      config {
        image      = "registry.example.com/driver:1.0"
        entrypoint = ["volkit-csi", "--state-dir", "${NOMAD_ALLOC_DIR}/data/volkit"]
      }

      csi_plugin {
        id        = "array"
        type      = "controller"
        mount_dir = "/csi"
      }

      env {
        VOLKIT_BACKEND    = "array"
        VOLKIT_SERVICES   = "controller"
        VOLKIT_ENDPOINT   = "unix:///csi/csi.sock"
        VOLKIT_NODE_ID    = "${attr.unique.hostname}"
        VOLKIT_LOG_LEVEL  = "info"
        VOLKIT_LOG_FORMAT = "json"
        VOLKIT_OPTION_ENDPOINT = "https://array.example.com"
        VOLKIT_OPTION_CA = "${NOMAD_SECRETS_DIR}/ca"
      }

      # nomad var put nomad/jobs/volkit-array-controller token=@FILE ca=@/etc/array/ca.pem

      template {
        destination = "${NOMAD_SECRETS_DIR}/options.env"
        env         = true
        data        = <<-EOT
          {{ with nomadVar "nomad/jobs/volkit-array-controller" }}
          {{ with .token }}VOLKIT_OPTION_TOKEN={{ . | toJSON }}{{ end }}
          {{ with .password }}VOLKIT_OPTION_PASSWORD={{ . | toJSON }}{{ end }}
          {{ end }}
        EOT
      }

      template { # the file that the setting ca names
        destination = "${NOMAD_SECRETS_DIR}/ca"
        data        = <<-EOT
          {{ with nomadVar "nomad/jobs/volkit-array-controller" }}{{ .ca }}{{ end }}
        EOT
      }

      user         = "root" # Nomad makes the socket's directory for root
      kill_timeout = "40s"  # the driver waits 30 seconds for calls that run

      resources {
        cpu    = 50
        memory = 128
      }
    }
  }
}
