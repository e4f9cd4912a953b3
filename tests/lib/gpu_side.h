/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gpu_side.h - an engine's own GPU: memory of both kinds that can be told to a daemon, a stream, interprocess
 * events.  A real one through the driver's interface, found at run time; or memfds, with
 * $SKVC_TEST_DEVICE=sim.  For processes that are engines and nothing else: whatever fails says so and ends
 * the process with status 1.
 */
#ifndef SKVCD_TESTS_LIB_GPU_SIDE_H
#define SKVCD_TESTS_LIB_GPU_SIDE_H

#include <stdbool.h>
#include <stdint.h>

#include "client-lib/skvc.h"
#include "tools/bench_cuda.h"

#define GPU_SIDE_GRAIN (2u << 20) /* sizes are multiples of it: no other is exact in both kinds */

enum gpu_side_kind {
	GPU_SIDE_IPC, /* cuMemAlloc and a legacy handle */
	GPU_SIDE_VMM, /* cuMemCreate and a descriptor */
	GPU_SIDE_KIND_COUNT
};

/* What bench_cuda.h has not; the driver's prototypes, a CUmemGenericAllocationHandle is a uint64_t. */
struct gpu_vmm;

struct gpu_side {
	bool sim;
	struct cuda_driver cuda;
	struct gpu_vmm *vmm; /* owned */
	cuda_stream stream;
	uint8_t uuid[16];
};

struct gpu_memory {
	enum gpu_side_kind kind;
	uint64_t address; /* sim: of a mapping */
	uint64_t bytes;
	uint64_t handle; /* VMM */
	int fd;		 /* VMM, and of the simulated one */
};

struct gpu_event {
	uint8_t handle[64];
	void *own; /* CUevent, or struct sim_event_words */
	int fd;
};

/* Ends the process unless it holds. */
#define gpu_need(ok)                                           \
	do {                                                   \
		if (!(ok))                                     \
			gpu_side_die(__FILE__, __LINE__, #ok); \
	} while (0)
__attribute__((noreturn)) void gpu_side_die(const char *file, int line, const char *what);

bool gpu_side_is_sim(void);
/* 77 with a line on stdout when there is no GPU, else 0. */
int gpu_side_open(struct gpu_side *g);
void gpu_side_close(struct gpu_side *g);
uint64_t gpu_side_free_bytes(const struct gpu_side *g); /* of the card; sim: 0 */

void gpu_side_memory_new(struct gpu_side *g, enum gpu_side_kind kind, uint64_t bytes,
			 struct gpu_memory *ret);
void gpu_side_memory_free(struct gpu_side *g, struct gpu_memory *m);
/* Borrows m's descriptor. */
struct skvc_gpu_export gpu_side_export(const struct gpu_side *g, const struct gpu_memory *m);

/* Host memory that copies are fast from. */
void *gpu_side_host(struct gpu_side *g, uint64_t bytes);
/* Each is over when it returns. */
void gpu_side_write(struct gpu_side *g, const struct gpu_memory *m, const void *host);
void gpu_side_read(struct gpu_side *g, const struct gpu_memory *m, void *host);
void gpu_side_fill(struct gpu_side *g, const struct gpu_memory *m, uint8_t value);

void gpu_side_event_new(struct gpu_side *g, struct gpu_event *ret);
void gpu_side_event_free(struct gpu_side *g, struct gpu_event *e);
/* On the stream, or on a thread that plays one: wait `ms`, write all of m from host, then e is reached. */
void gpu_side_write_later(struct gpu_side *g, const struct gpu_memory *m, const void *host,
			  unsigned ms, struct gpu_event *e);
void gpu_side_later_end(struct gpu_side *g); /* and it has been */
/* The daemon has marked it `records` times; a real one: what it stands for is reached. */
void gpu_side_event_was_recorded(struct gpu_side *g, struct gpu_event *e, unsigned records);

#endif
