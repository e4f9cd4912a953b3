/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sim_handles.h - what an "engine" of the simulated GPU makes: memory and events that are memfds, and the
 * 64-byte handles that name them.  Whoever plays an engine (tests, the Python client) fills these structs.
 *
 * A handle has no path in it: pid and fd say which /proc/<pid>/fd/<fd> to open.  That works between
 * processes of one user that may ptrace each other, and lets a peer name any memfd of that user: it is
 * for tests, and no reason to run `[gpu] device = sim` where peers are not trusted.
 *
 * Device addresses are not addresses of this process: they are the real ones plus SIM_ADDRESS_OFFSET, so
 * that a lane that follows one dies at once, as it should.  sim_host() is for tests that look.
 */
#ifndef SKVCD_GPU_SIM_HANDLES_H
#define SKVCD_GPU_SIM_HANDLES_H

#include <assert.h>
#include <stdint.h>

#include "gpu/device.h"

#define SIM_UUID "SIMULATED-GPU-00" /* DEVICE_UUID_BYTES, without the terminating zero */
#define SIM_UUID_TEXT "GPU-53494d55-4c41-5445-442d-4750552d3030"
#define SIM_MEMORY_MAGIC 0x484d4953u /* "SIMH" */
#define SIM_EVENT_MAGIC 0x454d4953u  /* "SIME" */
#define SIM_EVENT_BYTES 4096u	     /* size of an event's memfd, exactly */

#define SIM_EVENT_PENDING 0u
#define SIM_EVENT_COMPLETE 1u

/* Names a memfd of ordinary pages, sealed against shrinking (F_SEAL_SHRINK) and writable. */
struct sim_handle {
	uint32_t magic;
	int32_t pid;
	int32_t fd;
	uint8_t reserved[52]; /* zero */
};

/* What lies at the start of an event's memfd; it too is sealed against shrinking. */
struct sim_event_words {
	/* Written by the engine (release): SIM_EVENT_PENDING, recorded but not reached; anything
	 * else is complete.  Read by the device (acquire). */
	_Atomic(uint32_t) state;
	/* Added one to by the device (release) with each event_record; read by the engine. */
	_Atomic(uint32_t) records;
};

static_assert(sizeof(struct sim_handle) == DEVICE_HANDLE_BYTES, "a handle");
static_assert(sizeof(struct sim_event_words) == 8, "an event");
static_assert(sizeof(SIM_UUID) == DEVICE_UUID_BYTES + 1u, "a uuid");

/* No user address of x86-64 with four levels of tables, nor of aarch64, has this bit. */
#define SIM_ADDRESS_OFFSET (1ull << 54)

static inline void *sim_host(const void *device_address)
{
	return (void *)((uintptr_t)device_address - SIM_ADDRESS_OFFSET);
}

/* The device dies here and now, as after a sticky error: for tests.  Called by the lane. */
void sim_device_kill(struct device *d);

#endif
