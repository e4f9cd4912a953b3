/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fake_cuda.h - a CUDA runtime that is not one, and a codec that only copies, for the tests of
 * gpu/cuda_*.c.  "Device memory" is the heap.  Work is done when it is queued; an event is reached after
 * it was asked for `delay` times.
 */
#ifndef SKVCD_TESTS_FAKE_CUDA_H
#define SKVCD_TESTS_FAKE_CUDA_H

#include <pthread.h>
#include <stdint.h>

struct codec_geometry;
struct codec_profile;

struct CUstream_st;

struct fake_cuda {
	int delay;			/* questions until an event is reached */
	int query_error;		/* what every question answers, when not 0 */
	int launch_error;		/* what every launch of the codec answers */
	int record_error;		/* what every cudaEventRecord answers */
	int wait_error;			/* and every cudaStreamWaitEvent */
	unsigned synchronized;		/* streams that were waited for: counted */
	int no_device;			/* the error of cudaGetDeviceCount */
	unsigned batches, copies, live; /* counted; live: allocations and objects not given back */
	unsigned batch_tasks_most;
	/* the model: of what it is, and what its calls answer when not 0 */
	pthread_mutex_t *gate; /* when not NULL: who makes a model must pass it */
	const struct codec_geometry *model_geometry;
	const struct codec_profile *model_profile;
	int model_error, code_error, coded_error;
	unsigned models, model_batches, model_blocks_most,
		model_parts_most; /* counted; in one batch */
	unsigned
		model_followed; /* parts queued behind others of their context, on another stream */
	unsigned coders, coders_peak,
		coders_most; /* there are, were; there is memory for, when not 0 */
	int bad_sums;	     /* checksums of so many blocks come out wrong */
};

extern struct fake_cuda fake_cuda;

/* Was it told to wait for the other one since fake_cuda_waited()? */
int fake_cuda_waits(const struct CUstream_st *stream, const struct CUstream_st *other);
void fake_cuda_waited(struct CUstream_st *stream); /* all that was queued is over */
uint64_t fake_cuda_hash(const void *block, uint64_t bytes);

#endif
