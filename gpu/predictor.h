/* SPDX-License-Identifier: Apache-2.0 */
/*
 * predictor.h - a device for tasks with a sequence, and what runs the model behind it.
 *
 * The device has one thread.  It makes batches of what can go together, of as many blocks of a sequence as there are
 * before those of the next one, in the order in which sequences began to wait: so prefixes become whole one after the
 * other, and batches under way seldom have one in common.  An engine runs them, and may block as it likes; it may have
 * several under way, so that one's copies are hidden by another's work.  The lane never waits.  Regions lie in host
 * memory: engines' GPU pages are another device's.
 *
 * Engines: predictor_cpu.c, the codec on that thread, for machines without a GPU; cuda_predictor.c.
 */
#ifndef SKVCD_GPU_PREDICTOR_H
#define SKVCD_GPU_PREDICTOR_H

#include <stdatomic.h>
#include <stdbool.h>

#include "gpu/task_queue.h"

#define PREDICTOR_BATCH_MAX 1024u /* tasks */
#define PREDICTOR_DEPTH_MAX 3u	  /* batches under way */

struct predictor;

/* First member of an engine's own. */
struct device_sequence {
	struct predictor *predictor;
	const struct codec_geometry *geom;   /* borrowed, like the profile: not by sequence_end() */
	const struct codec_profile *profile; /* with a model attached */
	unsigned running;		     /* the thread's: tasks that are under way */
	/* under the device's lock, like the next four */
	unsigned tasks; /* not polled yet */
	bool failed;	/* those behind are not run */
	/* what waits, [1]: background; and the next sequence with such tasks */
	struct task_queue todo[2];
	struct device_sequence *next_todo[2];
	struct device_sequence *next; /* to be ended */
};

struct predictor_engine {
	const struct predictor_engine_ops *ops;
	unsigned depth;	   /* batches that it can have under way, 1..PREDICTOR_DEPTH_MAX */
	_Atomic(int) dead; /* 0, or the errno after which nothing is run any more */
	_Atomic(uint64_t)
		busy_since_ns; /* since when it waits for a GPU's next answer; 0: it does not */
};

struct predictor_engine_ops {
	/* The lane's thread; zeros but for the first three members are the predictor's to fill. */
	int (*sequence_new)(struct predictor_engine *e, const struct codec_geometry *g,
			    const struct codec_profile *profile, struct device_sequence **ret);
	uint32_t (*position)(const struct device_sequence *s);
	void (*truncate)(struct device_sequence *s, uint32_t position);
	uint64_t (*bytes)(const struct device_sequence *s);
	/* The predictor's thread, like begin() and end().  Frees it. */
	void (*sequence_end)(struct predictor_engine *e, struct device_sequence *s);
	/* The lane's thread, too: tasks like this one that go through the model at a time; 1: it goes alone. */
	unsigned (*batch_max)(struct predictor_engine *e, const struct device_task *t);
	/*
	 * A batch, and that it is over: turn < PREDICTOR_DEPTH_MAX, and the same for both; batches end in the order in
	 * which they began.  Then each task's res is set.  Those of one sequence are behind each other and in order,
	 * also from one batch to the next; behind one that failed they fail too, with -ECANCELED when nothing else is
	 * known to be wrong with them.
	 */
	void (*begin)(struct predictor_engine *e, unsigned turn, struct device_task **tasks,
		      unsigned count);
	void (*end)(struct predictor_engine *e, unsigned turn);
	/* No thread uses it any more. */
	void (*free)(struct predictor_engine *e);
};

/* Takes ownership of the engine, also on failure. */
int predictor_new(struct predictor_engine *e, const struct predictor_options *options,
		  struct device **ret_device);

#endif
