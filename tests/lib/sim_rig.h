/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sim_rig.h - a simulated GPU and an engine beside it: two allocations of SIM_RIG_BLOCKS blocks that the
 * device has imported, an event, a profile that fits, and tasks to start.  For programs of cmocka.
 */
#ifndef SKVCD_TESTS_LIB_SIM_RIG_H
#define SKVCD_TESTS_LIB_SIM_RIG_H

#include <stdint.h>

#include "gpu/sim_handles.h"

#define SIM_RIG_BLOCKS 8u
#define SIM_RIG_TASKS 64u
#define SIM_RIG_MEMORY_BYTES ((uint64_t)4 * SIM_RIG_BLOCKS * 4096u)
#define SIM_RIG_POOL_BYTES (1u << 20)

struct sim_rig {
	struct codec_geometry g;
	struct codec_profile *profile;
	int wake_fd, src_fd, dst_fd, event_fd;
	struct device *dev;
	struct device *sim;	    /* borrowed: the one inside, when there is a fault device */
	uint8_t *src_mem, *dst_mem; /* the engine's own mappings */
	struct device_memory *src_memory, *dst_memory;
	struct device_region src, dst;
	struct sim_event_words *event_words;
	struct device_event *event;
	uint8_t *pool; /* an address of the device */
	struct device_task task[SIM_RIG_TASKS];
	uint8_t *host[SIM_RIG_TASKS];
	unsigned completions[SIM_RIG_TASKS];
};

/* Staging memory for staged_blocks payloads.  fault: a spec of the fault device around it; NULL: none. */
void sim_rig_setup(struct sim_rig *f, unsigned staged_blocks, unsigned background_percent,
		   const char *fault);
void sim_rig_teardown(struct sim_rig *f);

/* ---- the engine's things ---- */
int sim_rig_memfd(uint64_t bytes, unsigned seals);
void *sim_rig_view(int fd, uint64_t bytes);
void sim_rig_handle(uint8_t *handle, uint32_t magic, int pid, int fd);
struct device_import sim_rig_import(int fd);
/* Import and describe it: [segment][block][token][head][dim], as a paged cache lies. */
void sim_rig_region(struct sim_rig *f, struct device_region *r, const struct device_import *im,
		    struct device_memory **ret_memory);
void sim_rig_region_drop(struct sim_rig *f, struct device_region *r, struct device_memory *memory);

/* ---- a lane's: task i of the rig ---- */
struct device_task *sim_rig_encode(struct sim_rig *f, unsigned i);
/* It was an ENCODE that has completed: its payload goes to out. */
struct device_task *sim_rig_move(struct sim_rig *f, unsigned i, void *out, uint8_t out_place);
struct device_task *sim_rig_decode(struct sim_rig *f, unsigned i, const void *in, uint8_t in_place);
void sim_rig_start(struct sim_rig *f, struct device_task *t);
/* Poll, sleeping as a lane does, until n tasks came back. */
void sim_rig_collect(struct sim_rig *f, unsigned n);
/* Nothing comes back for a while. */
void sim_rig_collect_none(struct sim_rig *f, unsigned ms);
/* Tasks first to first + n have come back once since they were asked last; _ok: and are well. */
void sim_rig_all_once(struct sim_rig *f, unsigned first, unsigned n);
void sim_rig_all_ok(struct sim_rig *f, unsigned first, unsigned n);

#endif
