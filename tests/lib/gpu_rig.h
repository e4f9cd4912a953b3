/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gpu_rig.h - an engine's memory and events on the simulated GPU, for a session of a lane_rig: the test
 * plays the engine (memfds) and the control thread (imports, mail).
 */
#ifndef SKVCD_TESTS_LIB_GPU_RIG_H
#define SKVCD_TESTS_LIB_GPU_RIG_H

#include <stdint.h>

#include "gpu/sim_handles.h"
#include "tests/lib/lane_rig.h"

enum gpu_rig_layout {
	GPU_RIG_PACKED, /* [block][segment][token][head][dim] */
	GPU_RIG_NHD,	/* [segment][block][token][head][dim] */
	GPU_RIG_HND,	/* [segment][block][head][token][dim] */
	GPU_RIG_LAYOUT_COUNT
};

struct gpu_rig_region {
	struct lane_rig_session *rs;
	struct region region;
	struct device_memory *memory;
	uint32_t handle;
	int fd;
	uint8_t *map; /* the engine's view */
	uint64_t bytes;
};

void gpu_rig_config(struct config *ret); /* lane_rig_config() with a simulated GPU */
/* The region becomes the one that the session's stores and loads name. */
void gpu_rig_open(struct lane_rig_session *rs, uint32_t handle, enum gpu_rig_layout layout,
		  struct gpu_rig_region *ret);
void gpu_rig_end(struct gpu_rig_region *g);   /* REGION_END; waits until nothing uses it */
void gpu_rig_close(struct gpu_rig_region *g); /* the lane has forgotten it */
void gpu_rig_fill(struct gpu_rig_region *g, uint32_t page, uint32_t seed);
void gpu_rig_wipe(struct gpu_rig_region *g, uint8_t byte);
int gpu_rig_is(struct gpu_rig_region *g, uint32_t page, uint32_t seed);
/* The first tokens of the page are all `byte`, the others those of the seed. */
int gpu_rig_is_from(struct gpu_rig_region *g, uint32_t page, uint32_t seed, uint32_t skip_tokens,
		    uint8_t byte);

struct gpu_rig_event {
	struct lane_rig_session *rs;
	struct region region;
	uint32_t handle;
	int fd;
	struct sim_event_words *words;
};

void gpu_rig_event_open(struct lane_rig_session *rs, uint32_t handle, struct gpu_rig_event *ret);
void gpu_rig_event_close(struct gpu_rig_event *e);
void gpu_rig_event_set(struct gpu_rig_event *e, uint32_t state);

#endif
