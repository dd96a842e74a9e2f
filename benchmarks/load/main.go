// Command csiload drives a CSI endpoint as a container orchestrator does and prints what it
// measured as one JSON object. See `csiload -h`.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
)

const usage = `usage: csiload MODE --endpoint unix:///path.sock [flags]

  start       start the driver given after "--" and time it until the first Probe is answered
  probe       a raw RPC: time with one caller, throughput with --callers
  lifecycle   create, (controller publish), stage, publish, unpublish, unstage, (controller unpublish), delete
  publish-at  publish and unpublish one staged volume --count times, each at a new target
  fill        CreateVolume --count times
  create-at   create and delete --count volumes beside those that exist
  list        page through ListVolumes --rounds times
  drain       delete every volume that ListVolumes shows
  soak        random lifecycles with snapshots, clones and expansion, retried as a CO retries

flags:
`

// options are every mode's flags: one declaration keeps their spelling alike.
type options struct {
	endpoint, mode, rpc, prefix  string
	callers, count, page, rounds int
	duration, timeout, patience  time.Duration
	giveUp                       time.Duration
	without                      string
	seed                         uint64
	warm                         int
	places                       places
}

var modes = map[string]func(*driver, options) (any, error){
	"probe": probe, "lifecycle": lifecycle, "publish-at": publishAt, "fill": fill,
	"create-at": createAt, "list": list, "drain": drain, "soak": soak,
}

func parse(arguments []string) (options, []string) {
	o := options{places: places{parameters: map[string]string{}}}
	flags := flag.NewFlagSet("csiload", flag.ExitOnError)
	flags.Usage = func() { fmt.Fprint(os.Stderr, usage); flags.PrintDefaults() }
	flags.StringVar(&o.endpoint, "endpoint", os.Getenv("CSI_ENDPOINT"), "the driver's unix socket")
	flags.StringVar(&o.mode, "mode", "mount", "mount or block")
	flags.StringVar(&o.rpc, "rpc", "probe", "probe: probe, plugin-info or node-capabilities")
	flags.StringVar(&o.prefix, "prefix", "csiload", "how volume names begin; a number follows")
	flags.IntVar(&o.callers, "callers", 1, "callers at once, on one connection")
	flags.IntVar(&o.count, "count", 100, "volumes, publishes or starts")
	flags.IntVar(&o.warm, "warm", -1, "lifecycle: unmeasured lifecycles first (-1: one per caller)")
	flags.IntVar(&o.page, "page", 500, "list, drain: max_entries")
	flags.IntVar(&o.rounds, "rounds", 1, "list: how often to page through all")
	flags.DurationVar(&o.duration, "duration", 3*time.Second, "probe: how long; soak: start no lifecycle later (0s: one a caller)")
	flags.DurationVar(&o.giveUp, "give-up", 0, "fill: stop after this long, however many there are (0: never)")
	flags.DurationVar(&o.timeout, "timeout", 0, "deadline of one attempt (0: 10s in soak, else 120s)")
	flags.DurationVar(&o.patience, "patience", 60*time.Second, "how long a retryable error is retried")
	flags.Uint64Var(&o.seed, "seed", 1, "soak: of the random choices")
	flags.StringVar(&o.without, "without", "", "soak: steps to leave out, of republish,second,stats,snapshot,clone,expand")
	flags.Int64Var(&o.places.size, "size", 64<<20, "volume size in bytes")
	flags.StringVar(&o.places.fs, "fs", "ext4", "fs_type of mount volumes")
	flags.StringVar(&o.places.staging, "staging-dir", "", "parent of the staging paths")
	flags.StringVar(&o.places.target, "target-dir", "", "parent of the target paths")
	flags.Func("params", "k=v of CreateVolume's parameters, repeatable", func(pair string) error {
		key, value, found := strings.Cut(pair, "=")
		if !found {
			return fmt.Errorf("%q is not k=v", pair)
		}
		o.places.parameters[key] = value
		return nil
	})
	_ = flags.Parse(arguments) // ExitOnError.
	return o, flags.Args()
}

func run(mode string, arguments []string) (any, error) {
	o, rest := parse(arguments)
	if o.endpoint == "" {
		return nil, fmt.Errorf("%s: --endpoint (or CSI_ENDPOINT) is needed", mode)
	}
	if mode == "start" {
		return start(o, rest)
	}
	measure, known := modes[mode]
	if !known {
		return nil, fmt.Errorf("unknown mode %q: see csiload -h", mode)
	}
	if len(rest) > 0 {
		return nil, fmt.Errorf("%s: unexpected arguments %q", mode, rest)
	}
	needsPaths := mode == "lifecycle" || mode == "publish-at" || mode == "soak"
	if needsPaths && (o.places.staging == "" || o.places.target == "") {
		return nil, fmt.Errorf("%s: --staging-dir and --target-dir are needed", mode)
	}
	if o.mode != "mount" && o.mode != "block" {
		return nil, fmt.Errorf("--mode %q: mount or block", o.mode)
	}
	d, err := connect(o.endpoint)
	if err != nil {
		return nil, err
	}
	defer func() { _ = d.conn.Close() }()
	d.patience = o.patience
	if o.timeout > 0 {
		d.timeout = o.timeout
	}
	if err := d.discover(); err != nil {
		return nil, err
	}
	d.rec = newRecorder() // What discovery took is not part of any figure.
	return measure(d, o)
}

func main() {
	if len(os.Args) < 2 || strings.HasPrefix(os.Args[1], "-") {
		parse([]string{"-h"})
	}
	result, err := run(os.Args[1], os.Args[2:])
	if result != nil {
		if failed := json.NewEncoder(os.Stdout).Encode(result); failed != nil {
			err = failed
		}
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "csiload %s: %v\n", os.Args[1], err)
		os.Exit(1)
	}
}

// each runs work(0..count-1) on callers goroutines and returns the first error, after which no new work starts.
func each(callers, count int, work func(i int) error) error {
	var group sync.WaitGroup
	var mutex sync.Mutex
	var first error
	next := 0
	for range callers {
		group.Go(func() {
			for {
				mutex.Lock()
				i := next
				next++
				stop := first != nil || i >= count
				mutex.Unlock()
				if stop {
					return
				}
				if err := work(i); err != nil {
					mutex.Lock()
					if first == nil {
						first = err
					}
					mutex.Unlock()
				}
			}
		})
	}
	group.Wait()
	return first
}
