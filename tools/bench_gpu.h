/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_gpu.h - an engine's side of a GPU: memory that the daemon can be told of, raw copies out of and into
 * it, events.  A real one (bench_gpu_cuda.c), one whose memory is memfds, for `[gpu] device = sim`
 * (bench_gpu_sim.c), and none: an arena of libskvc, where everything is a memcpy (bench_gpu_host.c).
 *
 * Used by one thread, the one that opened it.
 */
#ifndef SKVCD_TOOLS_BENCH_GPU_H
#define SKVCD_TOOLS_BENCH_GPU_H

#include <stdbool.h>
#include <stdint.h>

#include "client-lib/skvc.h"
#include "gpu/model/report.h"

#define BENCH_GPU_STREAMS 2u /* one to the device, one from it */

enum bench_gpu_kind { BENCH_GPU_CUDA, BENCH_GPU_SIM, BENCH_GPU_HOST };

struct bench_gpu;

struct bench_memory { /* of the GPU */
	uint64_t address;
	uint64_t bytes;
	int fd;			  /* sim: the memfd */
	struct skvc_arena *arena; /* host: owned */
};

struct bench_event { /* interprocess */
	uint8_t handle[64];
	void *own; /* CUevent, or the words of the simulated one */
	int fd;
};

/* 0, or -errno with a line in g->r. */
struct bench_gpu_ops {
	int (*memory_new)(struct bench_gpu *g, struct skvc_session *s, uint64_t bytes,
			  struct bench_memory *ret);
	/* After its region was unregistered or the session closed; zero-initialised is fine. */
	void (*memory_free)(struct bench_gpu *g, struct bench_memory *m);
	/* All of it, as so many packed blocks. */
	int (*region)(struct bench_gpu *g, struct skvc_session *s, uint32_t ns,
		      const struct bench_memory *m, uint32_t blocks, uint32_t *ret_region);
	/* Host memory for copies at full speed. */
	int (*host_new)(struct bench_gpu *g, uint64_t bytes, void **ret);
	void (*host_free)(struct bench_gpu *g, void *host, uint64_t bytes);
	/* Begin a copy on the direction's own stream; sync() waits for all of that direction. */
	int (*copy)(struct bench_gpu *g, bool to_device, uint64_t address, void *host,
		    uint64_t bytes);
	int (*sync)(struct bench_gpu *g, bool to_device);
	/* NULL: no events here.  record: on the stream to the device. */
	int (*event_new)(struct bench_gpu *g, struct bench_event *ret);
	int (*event_record)(struct bench_gpu *g, struct bench_event *e);
	void (*event_free)(struct bench_gpu *g, struct bench_event *e);
	void (*free)(struct bench_gpu *g);
};

struct bench_gpu {
	const struct bench_gpu_ops *ops;
	const struct report *r; /* borrowed */
	char model[64];
	uint8_t uuid[16];
	void *own;
};

/* "gpu", "sim" or "host".  -EINVAL. */
int bench_gpu_kind_parse(const char *name, enum bench_gpu_kind *ret_kind);
/* which: an ordinal, NULL: the first.  -ENODEV: there is none. */
int bench_gpu_open(enum bench_gpu_kind kind, const char *which, const struct report *r,
		   struct bench_gpu *ret);
void bench_gpu_close(struct bench_gpu *g); /* zero-initialised is fine */

/* Each opens one kind. */
int bench_gpu_cuda_open(struct bench_gpu *g, const char *which);
int bench_gpu_sim_open(struct bench_gpu *g);
int bench_gpu_host_open(struct bench_gpu *g);

/* Copies by the CPU: without a GPU, and for the simulated one. */
int bench_host_new(struct bench_gpu *g, uint64_t bytes, void **ret);
void bench_host_free(struct bench_gpu *g, void *host, uint64_t bytes);
int bench_host_copy(struct bench_gpu *g, bool to_device, uint64_t address, void *host,
		    uint64_t bytes);
int bench_host_sync(struct bench_gpu *g, bool to_device);
void bench_host_close(struct bench_gpu *g);

/* The line of a call of libskvc that failed. */
int bench_session_fail(const struct report *r, int error, const char *call,
		       const struct skvc_session *s);

#endif
