package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// driver is one CSI endpoint on one connection, with what it advertises.
type driver struct {
	conn       *grpc.ClientConn
	identity   csi.IdentityClient
	controller csi.ControllerClient
	node       csi.NodeClient

	plugin       map[csi.PluginCapability_Service_Type]bool
	controllerOf map[csi.ControllerServiceCapability_RPC_Type]bool
	nodeOf       map[csi.NodeServiceCapability_RPC_Type]bool
	nodeID       string
	topology     *csi.Topology

	rec *recorder
	// patience bounds how long a retryable error is retried, timeout one attempt.
	patience, timeout time.Duration
	retryable         map[codes.Code]bool
}

// rpcError is what an RPC failed with for good.
type rpcError struct {
	Method   string `json:"method"`
	Code     string `json:"code"`
	Message  string `json:"message"`
	Volume   string `json:"volume,omitempty"`
	Attempts int    `json:"attempts"`
}

func (e *rpcError) Error() string {
	return fmt.Sprintf("%s %s: %s: %s (attempt %d)", e.Method, e.Volume, e.Code, e.Message, e.Attempts)
}

func connect(endpoint string) (*driver, error) {
	conn, err := grpc.NewClient("unix://"+socketPath(endpoint),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithAuthority("localhost"),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(256<<20)),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.5, MaxDelay: 300 * time.Millisecond},
			MinConnectTimeout: time.Second,
		}))
	if err != nil {
		return nil, err
	}
	return &driver{
		conn:       conn,
		identity:   csi.NewIdentityClient(conn),
		controller: csi.NewControllerClient(conn),
		node:       csi.NewNodeClient(conn),
		rec:        newRecorder(),
		patience:   60 * time.Second,
		timeout:    120 * time.Second,
		retryable:  map[codes.Code]bool{codes.Aborted: true, codes.Unavailable: true},
	}, nil
}

func socketPath(endpoint string) string {
	return strings.TrimPrefix(strings.TrimPrefix(endpoint, "unix://"), "unix:")
}

// discover asks the driver what it can do, as a CO does before its first volume.
func (d *driver) discover() error {
	d.plugin = map[csi.PluginCapability_Service_Type]bool{}
	d.controllerOf = map[csi.ControllerServiceCapability_RPC_Type]bool{}
	d.nodeOf = map[csi.NodeServiceCapability_RPC_Type]bool{}
	plugin, err := call(d, "GetPluginCapabilities", "", d.identity.GetPluginCapabilities, &csi.GetPluginCapabilitiesRequest{})
	if err != nil {
		return err
	}
	for _, c := range plugin.GetCapabilities() {
		d.plugin[c.GetService().GetType()] = true
	}
	if d.plugin[csi.PluginCapability_Service_CONTROLLER_SERVICE] {
		controller, err := call(d, "ControllerGetCapabilities", "", d.controller.ControllerGetCapabilities,
			&csi.ControllerGetCapabilitiesRequest{})
		if err != nil {
			return err
		}
		for _, c := range controller.GetCapabilities() {
			d.controllerOf[c.GetRpc().GetType()] = true
		}
	}
	node, err := call(d, "NodeGetCapabilities", "", d.node.NodeGetCapabilities, &csi.NodeGetCapabilitiesRequest{})
	if failed, ok := err.(*rpcError); ok && failed.Code == codes.Unimplemented.String() {
		return nil // A controller without a node service.
	} else if err != nil {
		return err
	}
	for _, c := range node.GetCapabilities() {
		d.nodeOf[c.GetRpc().GetType()] = true
	}
	info, err := call(d, "NodeGetInfo", "", d.node.NodeGetInfo, &csi.NodeGetInfoRequest{})
	if err != nil {
		return err
	}
	d.nodeID, d.topology = info.GetNodeId(), info.GetAccessibleTopology()
	return nil
}

// call runs one RPC until it succeeds, its error is final, or patience ends. The time
// recorded is what the caller waits: from the first attempt to the success.
func call[Req, Resp any](d *driver, method, volume string,
	rpc func(context.Context, Req, ...grpc.CallOption) (Resp, error), request Req) (Resp, error) {
	began, pause := time.Now(), 5*time.Millisecond
	for attempt := 1; ; attempt++ {
		ctx, cancel := context.WithTimeout(context.Background(), d.timeout)
		response, err := rpc(ctx, request)
		cancel()
		if err == nil {
			d.rec.add(method, time.Since(began))
			return response, nil
		}
		code := status.Code(err)
		if !d.retryable[code] || time.Since(began) > d.patience {
			return response, &rpcError{method, code.String(), status.Convert(err).Message(), volume, attempt}
		}
		d.rec.retry(method, code)
		time.Sleep(pause)
		pause = min(pause*2, 500*time.Millisecond)
	}
}

// volume is what a CO remembers of one volume.
type volume struct {
	name, id, staging, target string
	capability                *csi.VolumeCapability
	context, published        map[string]string
	size                      int64
	attached, staged          bool
	targets                   map[string]bool
}

func (v *volume) block() bool { return v.capability.GetBlock() != nil }

// places are where a CO puts its staging and target paths, and how it asks for volumes.
type places struct {
	staging, target, fs string
	parameters          map[string]string
	size                int64
}

func (d *driver) accessMode() csi.VolumeCapability_AccessMode_Mode {
	if d.controllerOf[csi.ControllerServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER] &&
		d.nodeOf[csi.NodeServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER] {
		return csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER
	}
	return csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER
}

func (d *driver) capability(block bool, fs string) *csi.VolumeCapability {
	c := &csi.VolumeCapability{AccessMode: &csi.VolumeCapability_AccessMode{Mode: d.accessMode()}}
	if block {
		c.AccessType = &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}
	} else {
		c.AccessType = &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: fs}}
	}
	return c
}

func (d *driver) create(p places, name string, block bool, source *csi.VolumeContentSource) (*volume, error) {
	request := &csi.CreateVolumeRequest{
		Name:                name,
		CapacityRange:       &csi.CapacityRange{RequiredBytes: p.size},
		VolumeCapabilities:  []*csi.VolumeCapability{d.capability(block, p.fs)},
		Parameters:          p.parameters,
		VolumeContentSource: source,
	}
	if d.plugin[csi.PluginCapability_Service_VOLUME_ACCESSIBILITY_CONSTRAINTS] && d.topology != nil {
		request.AccessibilityRequirements = &csi.TopologyRequirement{
			Requisite: []*csi.Topology{d.topology}, Preferred: []*csi.Topology{d.topology}}
	}
	response, err := call(d, "CreateVolume", name, d.controller.CreateVolume, request)
	if err != nil {
		return nil, err
	}
	made := response.GetVolume()
	return &volume{
		name: name, id: made.GetVolumeId(), context: made.GetVolumeContext(), size: p.size,
		capability: request.VolumeCapabilities[0], targets: map[string]bool{},
		staging: filepath.Join(p.staging, name), target: filepath.Join(p.target, name),
	}, nil
}

// attach is ControllerPublishVolume, where the driver has it.
func (d *driver) attach(v *volume) error {
	if !d.controllerOf[csi.ControllerServiceCapability_RPC_PUBLISH_UNPUBLISH_VOLUME] {
		return nil
	}
	v.attached = true // Before the call: a failed publish has to be undone as well.
	response, err := call(d, "ControllerPublishVolume", v.name, d.controller.ControllerPublishVolume,
		&csi.ControllerPublishVolumeRequest{VolumeId: v.id, NodeId: d.nodeID, VolumeCapability: v.capability, VolumeContext: v.context})
	v.published = response.GetPublishContext()
	return err
}

func (d *driver) stage(v *volume) error {
	if !d.nodeOf[csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME] {
		return nil
	}
	if err := os.MkdirAll(v.staging, 0o750); err != nil {
		return err
	}
	v.staged = true
	_, err := call(d, "NodeStageVolume", v.name, d.node.NodeStageVolume, &csi.NodeStageVolumeRequest{VolumeId: v.id,
		PublishContext: v.published, StagingTargetPath: v.staging, VolumeCapability: v.capability, VolumeContext: v.context})
	return err
}

// publish returns the path where the volume is then to be seen. The CO makes only its parent.
func (d *driver) publish(v *volume, pod string) (string, error) {
	if err := os.MkdirAll(v.target, 0o750); err != nil {
		return "", err
	}
	path := filepath.Join(v.target, pod)
	request := &csi.NodePublishVolumeRequest{VolumeId: v.id, PublishContext: v.published, TargetPath: path,
		VolumeCapability: v.capability, VolumeContext: v.context}
	if v.staged {
		request.StagingTargetPath = v.staging
	}
	v.targets[path] = true
	_, err := call(d, "NodePublishVolume", v.name, d.node.NodePublishVolume, request)
	return path, err
}

func (d *driver) unpublish(v *volume, path string) error {
	_, err := call(d, "NodeUnpublishVolume", v.name, d.node.NodeUnpublishVolume,
		&csi.NodeUnpublishVolumeRequest{VolumeId: v.id, TargetPath: path})
	if err == nil {
		delete(v.targets, path)
	}
	return err
}

// takeDown undoes whatever the volume has been through, ending with DeleteVolume, and stops at the first error.
func (d *driver) takeDown(v *volume) error {
	for path := range v.targets {
		if err := d.unpublish(v, path); err != nil {
			return err
		}
	}
	if v.staged {
		if _, err := call(d, "NodeUnstageVolume", v.name, d.node.NodeUnstageVolume,
			&csi.NodeUnstageVolumeRequest{VolumeId: v.id, StagingTargetPath: v.staging}); err != nil {
			return err
		}
		v.staged = false
	}
	if v.attached {
		if _, err := call(d, "ControllerUnpublishVolume", v.name, d.controller.ControllerUnpublishVolume,
			&csi.ControllerUnpublishVolumeRequest{VolumeId: v.id, NodeId: d.nodeID}); err != nil {
			return err
		}
		v.attached = false
	}
	if err := d.deleteVolume(v.id, v.name); err != nil {
		return err
	}
	for _, directory := range []string{v.staging, v.target} { // rmdir only: what is left in them is a finding.
		if err := os.Remove(directory); err != nil && !os.IsNotExist(err) {
			return err
		}
	}
	return nil
}

func (d *driver) deleteVolume(id, name string) error {
	_, err := call(d, "DeleteVolume", name, d.controller.DeleteVolume, &csi.DeleteVolumeRequest{VolumeId: id})
	return err
}

// list pages through ListVolumes and returns every id; page 0 leaves the page size to the driver.
func (d *driver) list(page int32) ([]string, error) {
	var ids []string
	for token := ""; ; {
		response, err := call(d, "ListVolumes", "", d.controller.ListVolumes,
			&csi.ListVolumesRequest{MaxEntries: page, StartingToken: token})
		if err != nil {
			return ids, err
		}
		for _, entry := range response.GetEntries() {
			ids = append(ids, entry.GetVolume().GetVolumeId())
		}
		if token = response.GetNextToken(); token == "" {
			return ids, nil
		}
	}
}
