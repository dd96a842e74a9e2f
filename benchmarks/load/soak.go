package main

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
)

// soaked says what failed for good and what was left when all was deleted.
type soaked struct {
	Seconds       float64              `json:"seconds"`
	Lifecycles    int                  `json:"lifecycles"`
	Failed        int                  `json:"failed"`
	Failures      []string             `json:"failures"`
	Steps         map[string]int       `json:"steps"`
	LeftVolumes   []string             `json:"left_volumes"`
	LeftSnapshots []string             `json:"left_snapshots"`
	LeftMounts    []string             `json:"left_mounts"`
	Retries       map[string]int       `json:"retries"`
	RPC           map[string]quantiles `json:"rpc"`
}

// soaker is the state that the callers share.
type soaker struct {
	*driver
	places places
	prefix string
	mutex  sync.Mutex
	result soaked
	broken []*volume // What a lifecycle could not take down; the end tries once more.
}

// step is one thing that may happen to a published volume.
type step struct {
	name string
	do   func(*soaker, *life) error
}

// life is one volume on its way, with what it needs to prove that its data is still its own.
type life struct {
	*volume
	path   string
	token  []byte
	random *rand.Rand
}

func soak(d *driver, o options) (any, error) {
	d.retryable[codes.DeadlineExceeded] = true
	if o.timeout == 0 {
		d.timeout = 10 * time.Second // The sidecars' default.
	}
	s := &soaker{driver: d, places: o.places, prefix: fmt.Sprintf("%s-%d", o.prefix, os.Getpid()),
		result: soaked{Steps: map[string]int{}, Failures: []string{}, LeftVolumes: []string{}, LeftSnapshots: []string{}}}
	before, err := s.known()
	if err != nil {
		return nil, err
	}
	steps, err := s.steps(o.without)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	_ = each(o.callers, o.callers, func(caller int) error {
		random := rand.New(rand.NewPCG(o.seed, uint64(caller)))
		for i := 0; i == 0 || time.Since(began) < o.duration; i++ {
			s.settle(s.lifetime(random, steps, fmt.Sprintf("%s-%d-%d", s.prefix, caller, i)))
		}
		return nil // A failure is in the result and does not end the soak.
	})
	s.sweep(before)
	s.result.Seconds = time.Since(began).Seconds()
	s.result.Retries, s.result.RPC = d.rec.retries, d.rec.quantiles()
	left := len(s.result.LeftVolumes) + len(s.result.LeftSnapshots) + len(s.result.LeftMounts)
	if s.result.Failed > 0 || left > 0 {
		return s.result, fmt.Errorf("%d of %d lifecycles failed, %d things left", s.result.Failed, s.result.Lifecycles, left)
	}
	return s.result, nil
}

// steps are those that the driver advertises and --without leaves in.
func (s *soaker) steps(without string) ([]step, error) {
	controller, node := s.controllerOf, s.nodeOf
	advertised := map[string]bool{
		"republish": true,
		"second":    s.accessMode() == csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER,
		"stats":     node[csi.NodeServiceCapability_RPC_GET_VOLUME_STATS],
		"snapshot":  controller[csi.ControllerServiceCapability_RPC_CREATE_DELETE_SNAPSHOT],
		"clone":     controller[csi.ControllerServiceCapability_RPC_CLONE_VOLUME],
		"expand":    controller[csi.ControllerServiceCapability_RPC_EXPAND_VOLUME],
	}
	for name := range strings.SplitSeq(without, ",") {
		if _, known := advertised[name]; !known && name != "" {
			return nil, fmt.Errorf("soak: --without %q: no such step", name)
		}
		advertised[name] = false
	}
	var steps []step
	for _, candidate := range []step{{"republish", (*soaker).republish}, {"second", (*soaker).second}, {"stats", (*soaker).stats},
		{"snapshot", (*soaker).snapshot}, {"clone", (*soaker).clone}, {"expand", (*soaker).expand}} {
		if advertised[candidate.name] {
			steps = append(steps, candidate)
		}
	}
	if len(steps) == 0 {
		return nil, errors.New("soak: --without leaves no step")
	}
	return steps, nil
}

func (s *soaker) settle(err error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.result.Lifecycles++
	if err != nil {
		s.result.Failed++
		s.result.Failures = append(s.result.Failures, strings.ReplaceAll(err.Error(), "\n", "; "))
	}
}

// lifetime is one random lifecycle: up, data written, up to four steps, data still there, down.
func (s *soaker) lifetime(random *rand.Rand, steps []step, name string) error {
	v, err := s.create(s.places, name, random.IntN(2) == 0, nil)
	if err != nil {
		return err
	}
	l := &life{volume: v, token: []byte(name + "\n"), random: random}
	err = s.live(l, steps)
	return errors.Join(err, s.bury(v))
}

func (s *soaker) live(l *life, steps []step) error {
	if err := s.bringUp(l.volume); err != nil {
		return err
	}
	var err error
	if l.path, err = s.publish(l.volume, "pod-0"); err != nil {
		return err
	}
	if err := l.write(); err != nil {
		return err
	}
	for range l.random.IntN(5) {
		chosen := steps[l.random.IntN(len(steps))]
		if err := chosen.do(s, l); err != nil {
			return fmt.Errorf("%s: %w", chosen.name, err)
		}
		s.mutex.Lock()
		s.result.Steps[chosen.name]++
		s.mutex.Unlock()
	}
	return l.check(l.path)
}

func (s *soaker) bury(v *volume) error {
	err := s.takeDown(v)
	if err != nil {
		s.mutex.Lock()
		s.broken = append(s.broken, v)
		s.mutex.Unlock()
	}
	return err
}

// file is where the token is: the start of a raw device, or a file on a file system.
func (v *volume) file(path string) string {
	if v.block() {
		return path
	}
	return filepath.Join(path, "token")
}

func (l *life) write() error {
	flags := os.O_RDWR
	if !l.block() {
		flags |= os.O_CREATE
	}
	file, err := os.OpenFile(l.file(l.path), flags, 0o600)
	if err != nil {
		return err
	}
	_, err = file.WriteAt(l.token, 0)
	return errors.Join(err, file.Sync(), file.Close())
}

func (l *life) check(path string) error {
	file, err := os.Open(l.file(path))
	if err != nil {
		return err
	}
	found := make([]byte, len(l.token))
	_, err = file.ReadAt(found, 0)
	if err == nil && !bytes.Equal(found, l.token) {
		err = fmt.Errorf("DATA: %s holds %q, not %q", path, found, l.token)
	}
	return errors.Join(err, file.Close())
}

func (s *soaker) republish(l *life) error {
	err := s.unpublish(l.volume, l.path)
	if err == nil {
		l.path, err = s.publish(l.volume, fmt.Sprintf("pod-%d", l.random.Uint32()))
	}
	if err == nil {
		err = l.check(l.path)
	}
	return err
}

func (s *soaker) second(l *life) error {
	path, err := s.publish(l.volume, fmt.Sprintf("pod-%d", l.random.Uint32()))
	if err == nil {
		err = l.check(path)
	}
	return errors.Join(err, s.unpublish(l.volume, path))
}

func (s *soaker) stats(l *life) error {
	_, err := call(s.driver, "NodeGetVolumeStats", l.name, s.node.NodeGetVolumeStats,
		&csi.NodeGetVolumeStatsRequest{VolumeId: l.id, VolumePath: l.path, StagingTargetPath: l.staging})
	return err
}

func (s *soaker) snapshot(l *life) error {
	request := &csi.CreateSnapshotRequest{SourceVolumeId: l.id, Name: fmt.Sprintf("%s-snap-%d", l.name, l.random.Uint32())}
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		response, err := call(s.driver, "CreateSnapshot", l.name, s.controller.CreateSnapshot, request)
		if err != nil {
			return err
		}
		id := response.GetSnapshot().GetSnapshotId()
		if response.GetSnapshot().GetReadyToUse() {
			err = s.copyOf(l, &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
				Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: id}}})
		} else if time.Since(began) > s.patience {
			err = fmt.Errorf("snapshot %s is not ready after %s", id, s.patience)
		} else {
			continue
		}
		_, deleted := call(s.driver, "DeleteSnapshot", l.name, s.controller.DeleteSnapshot, &csi.DeleteSnapshotRequest{SnapshotId: id})
		return errors.Join(err, deleted)
	}
}

func (s *soaker) clone(l *life) error {
	return s.copyOf(l, &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{
		Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: l.id}}})
}

// copyOf makes a volume from the source, proves that the data is in it, and takes it down.
func (s *soaker) copyOf(l *life, source *csi.VolumeContentSource) error {
	wanted := s.places
	wanted.size = l.size
	v, err := s.create(wanted, fmt.Sprintf("%s-copy-%d", l.name, l.random.Uint32()), l.block(), source)
	if err != nil {
		return err
	}
	if err = s.bringUp(v); err == nil {
		var path string
		if path, err = s.publish(v, "pod-0"); err == nil {
			err = l.check(path)
		}
	}
	return errors.Join(err, s.bury(v))
}

func (s *soaker) expand(l *life) error {
	wanted := &csi.CapacityRange{RequiredBytes: l.size + 16<<20}
	response, err := call(s.driver, "ControllerExpandVolume", l.name, s.controller.ControllerExpandVolume,
		&csi.ControllerExpandVolumeRequest{VolumeId: l.id, CapacityRange: wanted, VolumeCapability: l.capability})
	if err != nil {
		return err
	}
	l.size = response.GetCapacityBytes()
	if !response.GetNodeExpansionRequired() || !s.nodeOf[csi.NodeServiceCapability_RPC_EXPAND_VOLUME] {
		return nil
	}
	_, err = call(s.driver, "NodeExpandVolume", l.name, s.node.NodeExpandVolume, &csi.NodeExpandVolumeRequest{VolumeId: l.id,
		VolumePath: l.path, StagingTargetPath: l.staging, CapacityRange: wanted, VolumeCapability: l.capability})
	return err
}

// known is every volume id that the driver shows; nothing where it cannot list.
func (s *soaker) known() (map[string]bool, error) {
	ids := map[string]bool{}
	if !s.controllerOf[csi.ControllerServiceCapability_RPC_LIST_VOLUMES] {
		return ids, nil
	}
	listed, err := s.list(500)
	for _, id := range listed {
		ids[id] = true
	}
	return ids, err
}

// sweep takes down what failed before, then reports what is there that was not there before, and deletes it.
func (s *soaker) sweep(before map[string]bool) {
	note := func(err error) {
		if err != nil {
			s.result.Failures = append(s.result.Failures, "sweep: "+err.Error())
		}
	}
	for _, v := range s.broken {
		note(s.takeDown(v))
	}
	s.result.LeftMounts = mountsBelow(s.places.staging, s.places.target)
	after, err := s.known()
	note(err)
	for id := range after {
		if !before[id] {
			s.result.LeftVolumes = append(s.result.LeftVolumes, id)
			note(s.deleteVolume(id, id))
		}
	}
	if s.controllerOf[csi.ControllerServiceCapability_RPC_LIST_SNAPSHOTS] {
		response, err := call(s.driver, "ListSnapshots", "", s.controller.ListSnapshots, &csi.ListSnapshotsRequest{})
		note(err)
		for _, entry := range response.GetEntries() {
			s.result.LeftSnapshots = append(s.result.LeftSnapshots, entry.GetSnapshot().GetSnapshotId())
		}
	}
}

func mountsBelow(directories ...string) []string {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return []string{err.Error()}
	}
	found := []string{}
	for line := range strings.Lines(string(table)) {
		for _, directory := range directories {
			if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[4], filepath.Clean(directory)+"/") {
				found = append(found, fields[4])
			}
		}
	}
	return found
}
