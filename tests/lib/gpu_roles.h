/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gpu_roles.h - what an engine's process of tests/gpu/test_gpu_engine does, by name; its exit status says how it
 * went.
 */
#ifndef SKVCD_TESTS_LIB_GPU_ROLES_H
#define SKVCD_TESTS_LIB_GPU_ROLES_H

/*
 * arg: role, the daemon's socket, a descriptor for news (uint64_t each), the kind of memory ("ipc", "vmm"),
 * then "layer" or "cross", or of `busy` "store" or "load".
 *	probe		says how much GPU memory is free; 77: there is no GPU
 *	roundtrip	store, load, compare
 *	events		ready and done events
 *	bad		all that is refused
 *	overwrite	pages after skvc_wait() and skvc_abort()
 *	tiers		more than the pools hold
 *	freeing		frees its memory under a store
 *	busy		stores or loads until it is killed; says when it begins
 *	survivor	stores and loads until SIGTERM; says when it begins, and how much it did
 *	faulty		against a device that fails at times
 *	dead		against one that dies
 */
int gpu_roles_run(char **arg);

#endif
