// Drives an installed driver by kubelet's own code: the package of Kubernetes that finds FlexVolume drivers, forks
// them and judges their answers. Only what is around it is not real: no API server, no pods, no containers.
//
//	FLEX_PLUGIN_DIR=… FLEX_ROOT=… FLEX_DRIVER=acme/loop FLEX_FS=xfs FLEX_SIZE=335544320 FLEX_GROWN=402653184 go test
package kubelet

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/kubernetes/pkg/volume"
	"k8s.io/kubernetes/pkg/volume/flexvolume"
	volumetest "k8s.io/kubernetes/pkg/volume/testing"
	"k8s.io/mount-utils"
	"k8s.io/utils/exec"
)

const node = types.NodeName("node1")

// host is Kubernetes' host for tests, with a mounter that looks at the real mount table.
type host struct{ volume.VolumeHost }

func (h host) GetMounter() mount.Interface { return mount.New("") }

func plugin(t *testing.T) volume.VolumePlugin {
	t.Helper()
	driver := os.Getenv("FLEX_DRIVER")
	secret := &v1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "keys", Namespace: "ns"},
		Type:       v1.SecretType(driver),
		Data:       map[string][]byte{"password": []byte("hunter2")},
	}
	real := volumetest.NewFakeKubeletVolumeHost(t, os.Getenv("FLEX_ROOT"), fake.NewSimpleClientset(secret), nil)
	manager := volume.VolumePluginMgr{}
	prober := flexvolume.GetDynamicPluginProber(context.Background(), os.Getenv("FLEX_PLUGIN_DIR"), exec.New())
	must(t, manager.InitPlugins(nil, prober, host{real}))
	found, err := manager.FindPluginBySpec(spec("pv-1"))
	must(t, err)
	return found
}

func spec(name string) *volume.Spec {
	return volume.NewSpecFromPersistentVolume(&v1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: v1.PersistentVolumeSpec{PersistentVolumeSource: v1.PersistentVolumeSource{
			FlexVolume: &v1.FlexPersistentVolumeSource{
				Driver:    os.Getenv("FLEX_DRIVER"),
				FSType:    os.Getenv("FLEX_FS"),
				SecretRef: &v1.SecretReference{Name: "keys", Namespace: "ns"},
				Options:   map[string]string{"volume": "v1", "size": os.Getenv("FLEX_SIZE")},
			},
		}},
	}, false)
}

func pod(uid string) *v1.Pod {
	return &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "pod-" + uid, Namespace: "ns", UID: types.UID(uid)}}
}

// TestLifecycle takes a volume to a pod, grows it, takes it away, and finds its data at the next pod.
func TestLifecycle(t *testing.T) {
	found := plugin(t)
	for _, uid := range []string{"uid-1", "uid-2"} {
		device, deviceMount := attach(t, found)
		mounter, err := found.NewMounter(spec("pv-1"), pod(uid))
		must(t, err)
		group := int64(1234)
		must(t, mounter.SetUp(volume.MounterArgs{FsGroup: &group}))
		must(t, mounter.SetUp(volume.MounterArgs{FsGroup: &group})) // kubelet repeats it
		file := filepath.Join(mounter.GetPath(), "data")
		if uid == "uid-1" {
			must(t, os.WriteFile(file, []byte("kept"), 0o600))
		} else if text, err := os.ReadFile(file); err != nil || string(text) != "kept" {
			t.Fatalf("the second pod reads %q: %v", text, err)
		}
		if info, err := os.Stat(mounter.GetPath()); err != nil || info.Mode()&os.ModeSetgid == 0 {
			t.Fatalf("kubelet did not give the volume to the pod's group: %v, %v", info, err)
		}
		if uid == "uid-1" {
			grow(t, found, device, deviceMount, mounter.GetPath())
		}
		metrics, err := mounter.GetMetrics()
		must(t, err)
		if metrics.Capacity.Value() < 1<<20 {
			t.Fatalf("the metrics are of nothing: %v", metrics)
		}
		unmounter, err := found.NewUnmounter("pv-1", types.UID(uid))
		must(t, err)
		must(t, unmounter.TearDown())
		detach(t, found, deviceMount)
		if _, err := os.Stat(mounter.GetPath()); !os.IsNotExist(err) {
			t.Fatalf("%s is still there: %v", mounter.GetPath(), err)
		}
	}
}

func attach(t *testing.T, found volume.VolumePlugin) (string, string) {
	t.Helper()
	attachable, ok := found.(volume.AttachableVolumePlugin)
	if !ok {
		return "", ""
	}
	attacher, err := attachable.NewAttacher()
	must(t, err)
	device, err := attacher.Attach(spec("pv-1"), node)
	must(t, err)
	one := spec("pv-1")
	attached, err := attacher.VolumesAreAttached([]*volume.Spec{one}, node)
	must(t, err)
	if !attached[one] {
		t.Fatal("it is not attached")
	}
	device, err = attacher.WaitForAttach(spec("pv-1"), device, pod("uid"), time.Minute)
	must(t, err)
	path, err := attacher.GetDeviceMountPath(spec("pv-1"))
	must(t, err)
	must(t, attacher.MountDevice(spec("pv-1"), device, path, volume.DeviceMounterArgs{}))
	return device, path
}

func detach(t *testing.T, found volume.VolumePlugin, path string) {
	t.Helper()
	attachable, ok := found.(volume.AttachableVolumePlugin)
	if !ok {
		return
	}
	detacher, err := attachable.NewDetacher()
	must(t, err)
	must(t, detacher.UnmountDevice(path))
	name, err := found.GetVolumeName(spec("pv-1"))
	must(t, err)
	must(t, detacher.Detach(name, node))
	must(t, detacher.Detach(name, node))
}

// grow is what kubelet does after a claim was enlarged; its path is the pod's, of an attached volume too.
func grow(t *testing.T, found volume.VolumePlugin, device, deviceMount, podPath string) {
	t.Helper()
	if os.Getenv("FLEX_GROWN") == "" {
		return
	}
	expandable := found.(volume.NodeExpandableVolumePlugin)
	if !expandable.RequiresFSResize() {
		t.Fatal("it says that it does not grow")
	}
	for _, path := range []string{podPath, deviceMount} {
		if path == "" {
			continue
		}
		options := volume.NodeResizeOptions{
			VolumeSpec:      spec("pv-1"),
			DevicePath:      device,
			DeviceMountPath: path,
			NewSize:         size(t, "FLEX_GROWN"),
			OldSize:         size(t, "FLEX_SIZE"),
		}
		if done, err := expandable.NodeExpand(options); err != nil || !done {
			t.Fatalf("NodeExpand at %s: %v, %v", path, done, err)
		}
	}
}

func size(t *testing.T, name string) resource.Quantity {
	t.Helper()
	bytes, err := strconv.ParseInt(os.Getenv(name), 10, 64)
	must(t, err)
	return *resource.NewQuantity(bytes, resource.BinarySI)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
