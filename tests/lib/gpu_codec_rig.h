/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gpu_codec_rig.h - a device with memory of its own, used as a lane uses it: the GPU's, or the simulated one
 * with $SKVC_TEST_DEVICE=sim.  Device and host memory are cut from two pieces that last as long as the
 * rig.  For programs of cmocka.
 */
#ifndef SKVCD_TESTS_LIB_GPU_CODEC_RIG_H
#define SKVCD_TESTS_LIB_GPU_CODEC_RIG_H

#include <stdbool.h>
#include <stdint.h>

#include "gpu/device.h"

#define GPU_CODEC_RIG_TASKS 1024u

struct gpu_codec_rig {
	struct device *d;
	bool sim;
	int wake_fd;
	uint8_t *memory; /* an address of the device */
	uint64_t memory_bytes, memory_used;
	uint8_t *host; /* owned mapping, known to the device */
	uint64_t host_bytes, host_used;
	unsigned staged; /* payloads that were not given back */
};

/* One task, and what becomes of the payload if it is an ENCODE that went well. */
struct gpu_job {
	struct device_task task;
	void *keep; /* host memory of codec_bound(): a MOVE brings the payload here; NULL: dropped */
	int start_res;	      /* start()'s: below 0 the task never ran */
	unsigned completions; /* of the task */
	/* the rig's */
	struct device_task move;
	bool moving;
};

/* Where the tests' shared object lies; a static buffer. */
const char *gpu_codec_rig_library(void);
bool gpu_codec_rig_sim(void);
/* 0, or -errno with a line in why[DEVICE_ERR_BYTES]; -ENOENT: there is no GPU, or no library. */
int gpu_codec_rig_open(struct gpu_codec_rig *g, uint64_t staging_bytes, uint64_t memory_bytes,
		       char *why);
void gpu_codec_rig_close(struct gpu_codec_rig *g); /* nothing may be staged */

void gpu_codec_rig_forget(struct gpu_codec_rig *g); /* all that was cut is free again */
uint8_t *gpu_codec_rig_memory(struct gpu_codec_rig *g, uint64_t bytes);
uint8_t *gpu_codec_rig_host(struct gpu_codec_rig *g, uint64_t bytes);

/*
 * Start all of them, polling when the device takes no more, and wait until each has come back exactly once
 * and nothing is staged.  Fails the test when the device hangs.
 */
void gpu_codec_rig_run(struct gpu_codec_rig *g, struct gpu_job *jobs, unsigned count);
/* The test's own poll: what an ENCODE left stays staged. */
unsigned gpu_codec_rig_poll(struct gpu_codec_rig *g, struct device_task **ret_done, unsigned max);

/* Copies by MOVE; host memory is the rig's. */
void gpu_codec_rig_put(struct gpu_codec_rig *g, uint8_t *to, const void *host, uint64_t bytes);
void gpu_codec_rig_get(struct gpu_codec_rig *g, void *host, const uint8_t *from, uint64_t bytes);
uint64_t gpu_codec_rig_now_ms(void);

#endif
