/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sim_internal.h - what the files of the simulated GPU share.
 */
#ifndef SKVCD_GPU_SIM_INTERNAL_H
#define SKVCD_GPU_SIM_INTERNAL_H

#include <stdbool.h>
#include <stdint.h>

#include "gpu/device.h"

struct sim_staged { /* an ENCODE's room, from launch to unstage() */
	struct sim_staged *next;
	uint8_t *memory; /* owned; its own allocation, so that ASan sees a use after unstage() */
	uint64_t bytes;
};

struct sim_pool_piece;

#define SIM_MEMORY_BYTES (16ull << 30) /* what the card claims to have */

struct sim_memory { /* the lane's */
	uint64_t staging_bytes;
	uint64_t staging_used_bytes;
	uint64_t pool_bytes;
	struct sim_staged *staged;    /* owned list */
	struct sim_pool_piece *pools; /* owned list */
};

/* sim_memory.c.  Room for the worst payload of a block. */
uint64_t sim_stage_bytes(const struct codec_geometry *g);
bool sim_stage_fits(const struct sim_memory *m, const struct codec_geometry *g);
int sim_stage_new(struct sim_memory *m, const struct codec_geometry *g,
		  struct sim_staged **ret_staged);
void sim_stage_free(struct sim_memory *m, struct sim_staged *staged);
int sim_pool_new(struct sim_memory *m, uint64_t bytes, void **ret_address);
bool sim_in_pool(const struct sim_memory *m, const void *address, uint64_t bytes);
bool sim_in_staging(const struct sim_memory *m, const void *address, uint64_t bytes);
void sim_memory_deinit(struct sim_memory *m);

/* sim_import.c: the address that a lane is given for memory of the device at `host`, and so on. */
void *sim_device_address(void *host);
bool sim_is_device_address(const void *address);
/* Has the engine's stream not reached it yet? */
bool sim_event_pending(const struct device_event *event);
extern const struct device_import_ops sim_import_ops;

/* sim_task.c, any thread.  ENCODE: device_user is the struct sim_staged to encode into. */
int sim_task_run(struct codec_workspace *ws, struct device_task *t);

#endif
