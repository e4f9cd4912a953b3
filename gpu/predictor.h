/* SPDX-License-Identifier: Apache-2.0 */
/*
 * predictor.h - a device for tasks with a sequence, and what runs the model behind it.
 *
 * The device has one thread.  It takes tasks in the order of their start, makes batches of what can go together, of
 * many sequences and many blocks of each, and has an engine run them, which may block as it likes.  The lane never
 * waits.  Regions lie in host memory: engines' GPU pages are another device's.
 *
 * Engines: predictor_cpu.c, the codec on that thread, for machines without a GPU; cuda_predictor.c.
 */
#ifndef SKVCD_GPU_PREDICTOR_H
#define SKVCD_GPU_PREDICTOR_H

#include <stdatomic.h>
#include <stdbool.h>

#include "gpu/device.h"

#define PREDICTOR_BATCH_MAX 1024u /* tasks */

struct predictor;

/* First member of an engine's own. */
struct device_sequence {
	struct predictor *predictor;
	const struct codec_geometry *geom;   /* borrowed, like the profile: not by sequence_end() */
	const struct codec_profile *profile; /* with a model attached */
	unsigned tasks;			     /* under the device's lock: not polled yet */
	bool failed;			     /* likewise: those behind are not run */
	unsigned passed;	      /* the thread's: batch in which one had to stay behind */
	struct device_sequence *next; /* likewise: to be ended */
};

struct predictor_engine {
	const struct predictor_engine_ops *ops;
	_Atomic(int) dead;		 /* 0, or the errno after which nothing is run any more */
	_Atomic(uint64_t) busy_since_ns; /* when it gave a GPU what it waits for; 0: nothing */
};

struct predictor_engine_ops {
	/* The lane's thread; zeros but for the first three members are the predictor's to fill. */
	int (*sequence_new)(struct predictor_engine *e, const struct codec_geometry *g,
			    const struct codec_profile *profile, struct device_sequence **ret);
	uint32_t (*position)(const struct device_sequence *s);
	void (*truncate)(struct device_sequence *s, uint32_t position);
	uint64_t (*bytes)(const struct device_sequence *s);
	/* The predictor's thread, like run().  Frees it. */
	void (*sequence_end)(struct predictor_engine *e, struct device_sequence *s);
	/* The lane's thread, too: tasks like this one that go through the model at a time; 1: it goes alone. */
	unsigned (*batch_max)(struct predictor_engine *e, const struct device_task *t);
	/* Sets each one's res; those of one sequence are in order, and behind one that failed -ECANCELED. */
	void (*run)(struct predictor_engine *e, struct device_task **tasks, unsigned count);
	/* No thread uses it any more. */
	void (*free)(struct predictor_engine *e);
};

/* Takes ownership of the engine, also on failure. */
int predictor_new(struct predictor_engine *e, const struct predictor_options *options,
		  struct device **ret_device);

#endif
