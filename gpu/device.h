/* SPDX-License-Identifier: Apache-2.0 */
/*
 * device.h - the plain-C interface behind which work on KV bytes is done: gather, encode, decode,
 * scatter, fit.  cpu_device.c does it on worker threads; fault_device.c wraps another device and
 * injects errors and delays; a CUDA device will stand behind the same calls.
 *
 * One lane owns a device and is its only caller.  start() hands a task over; it completes exactly once,
 * later, by being returned from poll(), never inside start().  A start that returns < 0 never completes.
 * No policy and no logging here: errors are negative errno in task->res.
 */
#ifndef SKVCD_GPU_DEVICE_H
#define SKVCD_GPU_DEVICE_H

#include <stdint.h>

#include "gpu/codec/codec.h"

enum device_op {
	DEVICE_ENCODE,	 /* engine pages -> record payload */
	DEVICE_DECODE,	 /* record payload -> engine pages, verified */
	DEVICE_COPY_OUT, /* engine pages -> canonical raw bytes (calibration sample) */
	DEVICE_FIT,	 /* add sample blocks to a fit, perhaps freeze it; low priority */
	DEVICE_OP_COUNT
};

/* A registered piece of engine memory.  Built and bounds-checked once by device_region_init. */
struct device_region {
	const struct codec_geometry *geom; /* borrowed; outlives the region */
	uint8_t *base;			   /* borrowed mapping */
	uint64_t bytes;
	uint32_t blocks_count;
	struct codec_stride *stride; /* owned, one per segment */
	uint64_t *block_stride;	     /* owned, one per segment */
};

struct device_task {
	enum device_op op;
	/* in */
	const struct device_region
		*region; /* borrowed until completion; ENCODE, DECODE, COPY_OUT */
	uint32_t block_index;
	uint8_t speculator;		     /* ENCODE */
	const struct codec_geometry *geom;   /* FIT (others: region->geom) */
	const struct codec_profile *profile; /* borrowed until completion, may be NULL */
	const void *in; /* DECODE: payload; FIT: samples_count canonical blocks */
	uint64_t in_bytes;
	uint32_t samples_count; /* FIT */
	struct codec_fit *fit;	/* FIT: borrowed, no other task uses it meanwhile */
	uint8_t fit_finish;	/* FIT: also freeze a profile */
	uint8_t verify;		/* ENCODE: decode again before it counts */
	uint64_t expect_xxh3;	/* DECODE */
	uint32_t skip_tokens;	/* DECODE: leading tokens of the block left untouched */
	void *out;		/* ENCODE, COPY_OUT */
	uint64_t out_cap_bytes;
	/* out, valid once poll() returned the task */
	int32_t res;			   /* 0 or negative errno */
	struct codec_info info;		   /* ENCODE */
	struct codec_profile *ret_profile; /* FIT with fit_finish: owned by the caller */
	uint64_t busy_ns;		   /* time a worker spent on it */
	/* while running: written by the worker, read by the lane (relaxed; a hint until completion) */
	_Atomic(uint32_t) segments_done; /* DECODE */
	/* owner's */
	void *user;
};

struct device;

struct device_ops {
	int (*start)(struct device *d, struct device_task *task);
	unsigned (*poll)(struct device *d, struct device_task **ret_done, unsigned max);
	/* Arm: after this returns 1, a completion signals the wake fd given at creation.  Returns 0 when
	 * completions are already waiting (do not sleep). */
	int (*arm)(struct device *d);
	void (*disarm)(struct device *d);
	struct device *(*free)(struct device *d); /* drains running tasks first; returns NULL */
	const char *name;
};

struct device { /* first member of every implementation */
	const struct device_ops *ops;
	unsigned tasks_max; /* tasks that may be started and not yet polled */
};

/*
 * Check a layout against an allocation: every element of every block must lie inside it, rows must not
 * overlap, strides must be multiples of the element size.  Returns 0, -ERANGE (outside the
 * allocation), -EINVAL (overlap, misalignment or a zero), -ENOMEM.
 */
int device_region_init(struct device_region *r, const struct codec_geometry *geom, void *base,
		       uint64_t bytes, uint32_t blocks_count, const struct codec_stride *stride,
		       const uint64_t *block_stride);
void device_region_deinit(struct device_region *r);

/* workers: 1..64 threads.  wake_fd: an eventfd, borrowed, written (8 bytes) when armed.  spin_ns: how long
 * an idle worker polls before it sleeps. */
int cpu_device_new(unsigned workers, unsigned tasks_max, int wake_fd, uint64_t spin_ns,
		   struct device **ret_device);

/* spec: "encode:eio:every=7,decode:delay_ms=5:every=3" - takes ownership of inner on success. */
int fault_device_new(struct device *inner, const char *spec, struct device **ret_device);

#endif
