/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_internal.h - what the files of the CUDA device share; nobody else includes it.
 *
 * Threads.  The lane calls device_ops and event_record, and everything in struct cuda_device belongs to
 * it but what is listed here.  The control thread calls the other import operations; it alone touches
 * `memories` and `control` (a stream of its own), and reads base, ordinal and facts, which never change
 * after creation.  `dead` is written by either, read by both.  So there is no lock.
 *
 * A task's way:   start -> todo queue (or its event's, until that is reached) -> a flight -> finished
 *                 -> poll returns it
 * A flight is what was launched together: a batch of the codec, or a group of moves.
 */
#ifndef SKVCD_GPU_CUDA_INTERNAL_H
#define SKVCD_GPU_CUDA_INTERNAL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "gpu/codec/cuda_codec.h"
#include "gpu/device.h"
#include "gpu/staging.h"
#include "gpu/task_queue.h"

struct CUevent_st; /* cudaEvent_t */

#define CUDA_SHAPES_MAX 64u
#define CUDA_LAYERS_MAX 16u
#define CUDA_PROFILES_MAX 256u
#define CUDA_POOLS_MAX 16u
#define CUDA_HOSTS_MAX 272u /* a pool of 16 TiB comes in pieces of 64 GiB */

enum cuda_stream {
	CUDA_STREAM_LOAD,  /* kernels of DECODE and COPY_IN */
	CUDA_STREAM_STORE, /* kernels of ENCODE and COPY_OUT */
	CUDA_STREAM_IN0,   /* host -> device, used in turn with the next */
	CUDA_STREAM_IN1,
	CUDA_STREAM_OUT0, /* device -> host, likewise */
	CUDA_STREAM_OUT1,
	CUDA_STREAM_INSIDE, /* device -> device */
	CUDA_STREAM_IDLE,   /* never has work of ours before an event: uploads and marks */
	CUDA_STREAM_COUNT
};

enum cuda_class { CUDA_CLASS_LOAD, CUDA_CLASS_MOVE, CUDA_CLASS_STORE, CUDA_CLASS_COUNT };

/* free -> (launch) queued on its stream's list -> (its last event is reached) free */
struct cuda_flight {
	enum cuda_class class;
	enum device_op op;
	enum cuda_stream stream; /* where its last event is */
	bool background;
	bool kernel;		 /* kernel_begin and kernel_end were recorded */
	int res;		 /* what went wrong while it was launched; every task gets it */
	struct task_queue tasks; /* in the order of the batch */
	const struct codec_geometry *geom;
	uint64_t staged;      /* extent in the class's area; 0: none */
	uint64_t staged_each; /* stores: bytes from one task's payload to the next */
	uint32_t progress;    /* leading chunks seen done */
	uint64_t launched_ns;
	struct cuda_flight *next; /* free list, or the stream's */
	struct cuda_result
		*result; /* mapped, CUDA_BATCH_TASKS_MAX; the device has the same address */
	volatile uint8_t *chunk_done; /* mapped, CODEC_SEGMENTS_MAX */
	void *task_words;	      /* mapped, CUDA_BATCH_TASKS_MAX * CUDA_TASK_BYTES */
	struct CUevent_st
		*copied[2]; /* payloads are there; or, without a kernel, copied[0]: done */
	struct CUevent_st *kernel_begin, *kernel_end; /* these two tell times */
};

struct cuda_flights {
	struct cuda_flight *head;
	struct cuda_flight *tail;
};

/*
 * An account that fills at so many percent of real time: one for work that may wait, and one for all coding, by
 * which an operator bounds what engines lose.
 */
struct cuda_budget {
	int64_t ns;
	int64_t ns_max;
	uint64_t filled_ns; /* clock of the last filling */
	unsigned percent;
};

struct device_event {
	struct CUevent_st *event;
	/* the lane's: tasks that wait for it, and its place among the events that have such */
	struct task_queue waiting;
	struct device_event *next;
};

struct cuda_profile_entry {
	const struct codec_profile *key; /* borrowed until profile_gone() */
	struct cuda_profile *profile;	 /* owned */
};

struct cuda_driver; /* cuda_memory.c */

struct cuda_shape {			   /* cuda_shape.c */
	const struct codec_geometry *geom; /* borrowed, with its digest: the key */
	uint8_t digest[CODEC_DIGEST_BYTES];
	bool regular;	      /* cuda_codec_geometry_ok */
	uint64_t bound_bytes; /* codec_bound */
	uint32_t tasks_max
		[CUDA_CLASS_COUNT]; /* of a coding batch, by its scratch; 0: not even one */
};

struct cuda_layers { /* cuda_shape.c: what is asked of a profile for every task, likewise */
	const struct codec_profile *key;
	int ok;				      /* cuda_codec_layer_ok */
	uint32_t tasks_max[CUDA_CLASS_COUNT]; /* of a batch in which `layer` takes part */
};

struct cuda_host { /* registered host memory */
	uintptr_t base;
	uint64_t bytes;
};

struct cuda_device {
	struct device base;
	struct device_facts facts;
	int ordinal;
	_Atomic(int) dead; /* 0, or the errno */
	struct CUstream_st *stream[CUDA_STREAM_COUNT];
	struct cuda_flights flying[CUDA_STREAM_COUNT]; /* in the order of their last events */
	struct cuda_flight *flights;		       /* owned, all of them */
	void *mapped;				       /* owned: results and chunk bytes */
	struct cuda_flight *flights_free[CUDA_CLASS_COUNT];
	uint32_t flights_count[CUDA_CLASS_COUNT];    /* in the air */
	uint32_t background_count[CUDA_CLASS_COUNT]; /* of these */
	struct task_queue todo[CUDA_CLASS_COUNT][2]; /* [1]: background */
	struct task_queue finished;
	struct device_event *waited; /* events that tasks wait for */
	uint32_t tasks_count;	     /* started and not yet returned */
	bool eager;		     /* a launch might succeed now: poll has more to do */
	unsigned turn_in, turn_out;  /* which of the two streams is next */
	void *staging;		     /* owned */
	struct staging_area loads, stores;
	uint64_t loads_scratch, loads_scratch_bytes;
	uint64_t stores_scratch, stores_scratch_bytes;
	struct cuda_budget budget;	 /* background */
	struct cuda_budget share;	 /* kernels of all batches */
	uint64_t pace[CUDA_CLASS_COUNT]; /* best seen: ns for 64 KiB of raw bytes; 0: none yet */
	struct cuda_profile_entry profile[CUDA_PROFILES_MAX];
	uint32_t profiles_count;
	struct cuda_shape shape[CUDA_SHAPES_MAX];
	uint32_t shapes_count, shapes_next;
	struct cuda_layers layers[CUDA_LAYERS_MAX];
	uint32_t layers_next;
	struct CUevent_st *uploaded; /* a new profile's tables are there */
	void *pool[CUDA_POOLS_MAX];  /* owned */
	uint32_t pools_count;
	struct cuda_host host[CUDA_HOSTS_MAX];
	uint32_t hosts_count;
	struct cuda_codec_batch batch; /* being put together */
	/* the control thread's */
	struct CUstream_st *control;
	struct device_memory *memories;
	struct cuda_driver *driver; /* owned; fixed after creation */
};

/* cuda_error.c */
int gpu_errno(int cuda_error);
bool gpu_error_sticky(int cuda_error); /* the context is lost, and all work in it */
bool gpu_error_absent(int cuda_error); /* no driver or no device */
const char *gpu_error_name(int cuda_error);
/* One line into err (DEVICE_ERR_BYTES, may be NULL); returns res. */
int gpu_say(char *err, int res, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* cuda_device.c */
static inline struct cuda_device *cuda_device_of(struct device *d)
{
	return (struct cuda_device *)d;
}
void cuda_device_enter(const struct cuda_device *d); /* its context is the calling thread's */
void cuda_finish(struct cuda_device *d, struct device_task *t, int res);
/* Everything under way completes with an error, and nothing is begun any more. */
void cuda_device_die(struct cuda_device *d);
/* The same, when the context may not be lost: waits for what is under way. */
void cuda_device_abandon(struct cuda_device *d, int cuda_error);

/* cuda_batch.c: the codec's batches */
/* The bytes of staging that a task takes, 0 for none. */
uint64_t cuda_task_bytes(struct cuda_device *d, const struct device_task *t);
/* Launch one batch.  Returns true when it did, and there may be more to do. */
bool cuda_batch_launch(struct cuda_device *d, enum cuda_class class, bool background);

/* cuda_flight.c: what is in the air */
int cuda_flights_new(struct cuda_device *d, char *err);
void cuda_flights_free(struct cuda_device *d);
struct cuda_flight *cuda_flight_get(struct cuda_device *d, enum cuda_class class);
void cuda_flight_launched(struct cuda_device *d, struct cuda_flight *f);
/* Completes what has landed. */
void cuda_flights_harvest(struct cuda_device *d);
/* When the oldest that has not landed was launched; 0: all have. */
uint64_t cuda_flights_since(const struct cuda_device *d);
void cuda_flights_fail(struct cuda_device *d);
bool cuda_moves_launch(struct cuda_device *d, bool background);
uint64_t cuda_bus_ns(uint64_t bytes); /* what a copy of so much takes */
bool cuda_budget_open(struct cuda_budget *b);
void cuda_budget_spend(struct cuda_budget *b, uint64_t ns);

/* cuda_shape.c: valid until the next call */
const struct cuda_shape *cuda_shape_of(struct cuda_device *d, const struct codec_geometry *g);

const struct cuda_layers *cuda_layers_of(struct cuda_device *d, const struct codec_geometry *g,
					 const struct codec_profile *profile);

/* cuda_memory.c */
extern const struct device_import_ops cuda_import_ops;
int cuda_memory_init(struct cuda_device *d, char *err);
void cuda_memory_deinit(struct cuda_device *d);
int cuda_host_register(struct device *dev, void *base, uint64_t bytes);
void cuda_host_unregister(struct device *dev, void *base, uint64_t bytes);
/* Queue a copy; at most one place is the host.  Returns a CUDA error. */
int cuda_copy(const struct cuda_device *d, void *out, const void *in, uint64_t bytes,
	      enum device_place in_place, enum device_place out_place, enum cuda_stream stream);
int cuda_pool_memory(struct device *dev, uint64_t bytes, void **ret_base);

/* cuda_facts.c */
/* -ENOENT: no driver or no device. */
int cuda_facts_choose(const char *which, int *ret_ordinal, struct device_facts *ret_facts,
		      char *err);
/* Bytes in use on the card, by everybody; 0: unknown.  Needs no context. */
uint64_t cuda_facts_used(const struct device_facts *facts);

#endif
