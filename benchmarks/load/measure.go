package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
)

type started struct {
	FirstProbe quantiles `json:"first_probe"`
	Stop       quantiles `json:"stop"`
}

// start times a driver process from its start to its first answered Probe, and from SIGTERM to its end.
func start(o options, argv []string) (any, error) {
	if len(argv) == 0 {
		return nil, errors.New(`start: the driver's command line is needed after "--"`)
	}
	var ready, ended []time.Duration
	for range o.count {
		up, down, err := startOnce(o, argv)
		if err != nil {
			return nil, err
		}
		ready, ended = append(ready, up), append(ended, down)
	}
	return started{of(ready), of(ended)}, nil
}

func startOnce(o options, argv []string) (up, down time.Duration, err error) {
	path := socketPath(o.endpoint)
	_ = os.Remove(path)
	began := time.Now()
	process := exec.Command(argv[0], argv[1:]...)
	process.Stderr = os.Stderr
	if err := process.Start(); err != nil {
		return 0, 0, err
	}
	ended := make(chan struct{})
	go func() {
		_ = process.Wait() // Its exit status is the signal's.
		close(ended)
	}()
	defer func() {
		signalled := time.Now()
		_ = process.Process.Signal(syscall.SIGTERM)
		kill := time.AfterFunc(10*time.Second, func() { _ = process.Process.Kill() })
		<-ended
		kill.Stop()
		down = time.Since(signalled)
	}()
	for { // Until somebody listens: a gRPC connection would back off between its attempts.
		socket, err := net.Dial("unix", path)
		if err == nil {
			_ = socket.Close()
			break
		}
		if time.Since(began) > 30*time.Second {
			return 0, 0, fmt.Errorf("start: nobody listens at %s after 30 s: %w", path, err)
		}
		select {
		case <-ended:
			return 0, 0, fmt.Errorf("start: the driver ended: %s", process.ProcessState)
		case <-time.After(time.Millisecond):
		}
	}
	d, err := connect(o.endpoint)
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = d.conn.Close() }()
	if _, err := call(d, "Probe", "", d.identity.Probe, &csi.ProbeRequest{}); err != nil {
		return 0, 0, err
	}
	return time.Since(began), 0, nil
}

type raw struct {
	RPC       string    `json:"rpc"`
	One       quantiles `json:"one_caller"`
	Callers   int       `json:"callers"`
	Many      quantiles `json:"many_callers"`
	PerSecond float64   `json:"rpcs_per_s"`
}

func probe(d *driver, o options) (any, error) {
	rpc := map[string]func(context.Context) error{
		"probe": func(c context.Context) error { _, err := d.identity.Probe(c, &csi.ProbeRequest{}); return err },
		"plugin-info": func(c context.Context) error {
			_, err := d.identity.GetPluginInfo(c, &csi.GetPluginInfoRequest{})
			return err
		},
		"node-capabilities": func(c context.Context) error {
			_, err := d.node.NodeGetCapabilities(c, &csi.NodeGetCapabilitiesRequest{})
			return err
		},
	}[o.rpc]
	if rpc == nil {
		return nil, fmt.Errorf("probe: unknown --rpc %q", o.rpc)
	}
	storm := func(callers int, duration time.Duration) ([]time.Duration, error) {
		times := make([][]time.Duration, callers)
		end := time.Now().Add(duration)
		err := each(callers, callers, func(i int) error {
			for began := time.Now(); began.Before(end); {
				if err := rpc(context.Background()); err != nil {
					return err
				}
				now := time.Now()
				times[i] = append(times[i], now.Sub(began))
				began = now
			}
			return nil
		})
		return slices.Concat(times...), err
	}
	if _, err := storm(o.callers, o.duration/10); err != nil { // Warm both sides.
		return nil, err
	}
	one, err := storm(1, o.duration)
	if err != nil {
		return nil, err
	}
	many, err := storm(o.callers, o.duration)
	return raw{o.rpc, of(one), o.callers, of(many), float64(len(many)) / o.duration.Seconds()}, err
}

type lifecycles struct {
	Mode      string               `json:"mode"`
	Callers   int                  `json:"callers"`
	Volumes   int                  `json:"volumes"`
	Seconds   float64              `json:"seconds"`
	PerSecond float64              `json:"volumes_per_s"`
	RPC       map[string]quantiles `json:"rpc"`
	Retries   map[string]int       `json:"retries"`
}

func lifecycle(d *driver, o options) (any, error) {
	o.prefix = fmt.Sprintf("%s-%d-%s", o.prefix, os.Getpid(), o.mode)
	once := func(tag string) func(int) error {
		return func(i int) error { return d.lifecycleOnce(o, fmt.Sprintf("%s-%s-%d", o.prefix, tag, i)) }
	}
	if o.warm < 0 {
		o.warm = o.callers
	}
	if err := each(o.callers, o.warm, once("warm")); err != nil {
		return nil, err
	}
	d.rec = newRecorder()
	began := time.Now()
	if err := each(o.callers, o.count, once("v")); err != nil {
		return nil, err
	}
	took := time.Since(began).Seconds()
	return lifecycles{o.mode, o.callers, o.count, took, float64(o.count) / took, d.rec.quantiles(), d.rec.retries}, nil
}

func (d *driver) lifecycleOnce(o options, name string) error {
	v, err := d.create(o.places, name, o.mode == "block", nil)
	if err != nil {
		return err
	}
	if err = d.bringUp(v); err == nil {
		_, err = d.publish(v, "pod-0")
	}
	return errors.Join(err, d.takeDown(v))
}

func (d *driver) bringUp(v *volume) error {
	if err := d.attach(v); err != nil {
		return err
	}
	return d.stage(v)
}

type figures struct {
	RPC     map[string]quantiles `json:"rpc"`
	Retries map[string]int       `json:"retries"`
}

func publishAt(d *driver, o options) (any, error) {
	v, err := d.create(o.places, fmt.Sprintf("%s-%d-publish", o.prefix, os.Getpid()), o.mode == "block", nil)
	if err != nil {
		return nil, err
	}
	if err = d.bringUp(v); err == nil {
		err = each(1, o.count, func(i int) error {
			path, err := d.publish(v, fmt.Sprintf("pod-%d", i))
			if err != nil {
				return err
			}
			return d.unpublish(v, path)
		})
	}
	return figures{d.rec.quantiles(), d.rec.retries}, errors.Join(err, d.takeDown(v))
}

type filled struct {
	Created int                  `json:"created"`
	Asked   int                  `json:"asked"`
	Seconds float64              `json:"seconds"`
	Decades map[string]quantiles `json:"create_by_decade"`
	Retries map[string]int       `json:"retries"`
}

// fill leaves its volumes in place; a volume's decade is that of its number: <10, <100, <1000 ...
func fill(d *driver, o options) (any, error) {
	times := make([]time.Duration, o.count)
	began := time.Now()
	err := each(o.callers, o.count, func(i int) error {
		asked := time.Now()
		if o.giveUp > 0 && asked.Sub(began) > o.giveUp {
			return nil
		}
		_, err := d.create(o.places, fmt.Sprintf("%s-%07d", o.prefix, i), o.mode == "block", nil)
		times[i] = time.Since(asked)
		return err
	})
	result := filled{Asked: o.count, Seconds: time.Since(began).Seconds(), Decades: map[string]quantiles{}, Retries: d.rec.retries}
	for low, high := 0, 10; low < o.count; low, high = high, high*10 {
		decade := slices.DeleteFunc(slices.Clone(times[low:min(high, o.count)]), func(t time.Duration) bool { return t == 0 })
		result.Created += len(decade)
		result.Decades[fmt.Sprintf("<%d", high)] = of(decade)
	}
	return result, err
}

func createAt(d *driver, o options) (any, error) {
	err := each(o.callers, o.count, func(i int) error {
		v, err := d.create(o.places, fmt.Sprintf("%s-%d-at-%d", o.prefix, os.Getpid(), i), o.mode == "block", nil)
		if err != nil {
			return err
		}
		return d.deleteVolume(v.id, v.name)
	})
	return figures{d.rec.quantiles(), d.rec.retries}, err
}

type listed struct {
	Entries    int       `json:"entries"`
	Duplicates int       `json:"duplicates"`
	Pages      int       `json:"pages"`
	Page       quantiles `json:"page"`
}

func list(d *driver, o options) (any, error) {
	var result listed
	for range o.rounds {
		ids, err := d.list(int32(o.page))
		if err != nil {
			return nil, err
		}
		result.Entries = len(ids)
		slices.Sort(ids)
		result.Duplicates = len(ids) - len(slices.Compact(ids))
	}
	result.Page = d.rec.quantiles()["ListVolumes"]
	result.Pages = result.Page.N / o.rounds
	return result, nil
}

type drained struct {
	Deleted int       `json:"deleted"`
	Left    int       `json:"left"`
	Delete  quantiles `json:"delete"`
}

func drain(d *driver, o options) (any, error) {
	if !d.controllerOf[csi.ControllerServiceCapability_RPC_LIST_VOLUMES] {
		return nil, errors.New("drain: the driver does not advertise LIST_VOLUMES")
	}
	var result drained
	for { // Again until none is left: not every driver shows more than its first page.
		ids, err := d.list(int32(o.page))
		if result.Left = len(ids); err != nil || len(ids) == 0 {
			result.Delete = d.rec.quantiles()["DeleteVolume"]
			return result, err
		}
		if err := each(o.callers, len(ids), func(i int) error { return d.deleteVolume(ids[i], ids[i]) }); err != nil {
			return result, err
		}
		result.Deleted += len(ids)
	}
}
