"""Tests that cross distributions: the real `volkit-csi` process with the loop backend, on real devices."""
