package main

import (
	"math"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
)

// recorder keeps the time of every RPC that succeeded and counts the retries, by method.
type recorder struct {
	mutex   sync.Mutex
	times   map[string][]time.Duration
	retries map[string]int
}

func newRecorder() *recorder {
	return &recorder{times: map[string][]time.Duration{}, retries: map[string]int{}}
}

func (r *recorder) add(method string, took time.Duration) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	r.times[method] = append(r.times[method], took)
}

func (r *recorder) retry(method string, code codes.Code) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	r.retries[method+" "+code.String()]++
}

// quantiles are in microseconds.
type quantiles struct {
	N   int     `json:"n"`
	P50 float64 `json:"p50_us"`
	P99 float64 `json:"p99_us"`
	Max float64 `json:"max_us"`
}

// of sorts times in place; the nearest-rank quantile is a time that was measured, not an interpolation.
func of(times []time.Duration) quantiles {
	if len(times) == 0 {
		return quantiles{}
	}
	slices.Sort(times)
	at := func(q float64) float64 {
		rank := max(int(math.Ceil(q*float64(len(times)))), 1)
		return float64(times[rank-1].Nanoseconds()) / 1e3
	}
	return quantiles{len(times), at(0.50), at(0.99), at(1)}
}

func (r *recorder) quantiles() map[string]quantiles {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	all := map[string]quantiles{}
	for method, times := range r.times {
		all[method] = of(slices.Clone(times))
	}
	return all
}
