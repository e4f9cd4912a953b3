/* SPDX-License-Identifier: Apache-2.0 */
/*
 * device.h - the plain-C interface behind which work on KV bytes is done: gather, encode, decode,
 * scatter, move, fit.  cpu_device.c does it on worker threads over host memory; cuda_device.c (in a shared
 * object of its own) on a GPU over GPU memory; sim_device.c plays a GPU on machines that have none;
 * fault_device.c wraps another device and injects errors and delays.  predictor.c is a device for what MODEL
 * codes, and for nothing else, where a GPU runs the model.
 *
 * One lane owns a device and is its only caller, except for the calls of struct device_import_ops.
 * start() hands a task over; it completes exactly once, later, by being returned from poll(), never
 * inside start().  A start that returns < 0 never completes.  A device may hold tasks back to run them
 * together; poll() is what moves it.
 * No policy and no logging here: errors are negative errno in task->res.
 */
#ifndef SKVCD_GPU_DEVICE_H
#define SKVCD_GPU_DEVICE_H

#include <stddef.h>
#include <stdint.h>

#include "gpu/codec/codec.h"

enum device_op {
	DEVICE_ENCODE,	 /* engine pages -> record payload */
	DEVICE_DECODE,	 /* record payload -> engine pages, verified */
	DEVICE_COPY_OUT, /* engine pages -> canonical raw bytes in host memory */
	DEVICE_COPY_IN,	 /* canonical raw bytes in host memory -> engine pages */
	DEVICE_MOVE,	 /* bytes between device memory and host memory, or inside device memory */
	DEVICE_FIT, /* add sample blocks to a fit, perhaps freeze it; low priority; CPU device only */
	/* make a profile that can do LAYER out of sample blocks; takes up to minutes; CPU device only */
	DEVICE_FIT_LAYER,
	/* add a model's part to a profile, fitted on sample blocks; takes up to minutes; CPU device only */
	DEVICE_FIT_MODEL,
	/* what a sequence needs before its first block, its model above all; devices with many tasks to one only */
	DEVICE_PREPARE,
	DEVICE_OP_COUNT
};

/* Where bytes lie that a task reads or writes.  DEVICE: an address that only the device may follow. */
enum device_place { DEVICE_PLACE_HOST, DEVICE_PLACE_DEVICE };

struct device_memory;	/* an engine's allocation, opened by this device */
struct device_event;	/* an engine's event, opened by this device */
struct device_sequence; /* a prefix for MODEL, as this device keeps it */

/* A registered piece of engine memory.  Built and bounds-checked once by device_region_init. */
struct device_region {
	const struct codec_geometry *geom; /* borrowed; outlives the region */
	uint8_t *base; /* borrowed mapping; of GPU memory: an address of the device */
	uint64_t bytes;
	uint32_t blocks_count;
	struct codec_stride *stride; /* owned, one per segment */
	uint64_t *block_stride;	     /* owned, one per segment */
	void *device_private;	     /* region_open's; NULL on the CPU device */
};

/* One block in host memory, in canonical packing.  Owns nothing. */
static inline struct device_region device_region_packed(const struct codec_geometry *g, void *base)
{
	return (struct device_region){
		.geom = g, .base = base, .bytes = g->raw_bytes, .blocks_count = 1
	};
}

#define DEVICE_COPIES_MAX 2u

struct device_copy {
	const void *in;
	void *out;
	uint64_t bytes;
	uint8_t in_place; /* enum device_place */
	uint8_t out_place;
};

struct device_task {
	enum device_op op;
	/* in */
	/* borrowed until completion; ENCODE, DECODE, COPY_OUT, COPY_IN */
	const struct device_region *region;
	uint32_t block_index;
	uint8_t speculator; /* ENCODE */
	/* ENCODE: of the block's first token in its sequence, or CODEC_POSITION_UNKNOWN */
	uint32_t position;
	/* ENCODE, DECODE: the prefix that the block follows, for MODEL; of this device; borrowed until completion.
	 * Tasks that have it complete in the order of their start, but for those that are cancelled, and when one's
	 * res is not 0 those that were started behind it fail too (-ECANCELED, if nothing else is wrong with them).
	 * When the task's res is 0 the block has been appended to it, else it is as it was.  position: the sequence's
	 * own.  NULL: unknown. */
	struct device_sequence *sequence;
	uint8_t prefix_only; /* DECODE with a sequence: the region's bytes are not wanted */
	const int32_t *
		tokens; /* ENCODE, and DECODE with a sequence: the block's token ids, borrowed until
				* completion, or NULL; FIT_MODEL: those of all samples */
	const struct mspec_model *model;   /* FIT_MODEL: borrowed as long as the profile lives */
	const struct codec_geometry *geom; /* FIT, FIT_LAYER, FIT_MODEL (others: region->geom) */
	/* borrowed until completion, may be NULL; FIT_LAYER, FIT_MODEL: whose parts the new one has too */
	const struct codec_profile *profile;
	/* DECODE: payload; COPY_IN: raw block; FIT, FIT_LAYER, FIT_MODEL: samples_count canonical blocks,
	 * borrowed and, when positions are given to FIT, moved about */
	const void *in;
	uint64_t in_bytes;
	uint8_t in_place; /* DECODE: enum device_place of `in` */
	uint32_t samples_count;
	uint32_t samples_first; /* FIT: those before are in the statistics already */
	/* FIT: of each sample; those of unknown ones are thrown out, and the samples with them: the first
	 * samples_kept stay.  NULL: all may be overwritten.  FIT_LAYER: all are known.  FIT_MODEL: they are of
	 * whole sequences, block after block, each beginning at 0. */
	uint32_t *positions;
	struct codec_fit *fit; /* FIT: borrowed, no other task uses it meanwhile */
	/* FIT with fit_finish, FIT_LAYER: the one to beat, if any */
	const struct codec_profile *rival;
	uint8_t previous;   /* FIT_LAYER, FIT_MODEL of a draft: layers looked back */
	uint8_t fit_finish; /* FIT: also freeze a profile */
	uint8_t discard;    /* FIT, FIT_LAYER: the samples' pages are given back to the system */
	_Atomic(uint32_t)
		cancel; /* FIT_LAYER, FIT_MODEL: set by the lane, it ends soon with -ECANCELED */
	uint8_t verify; /* ENCODE: decode again before it counts */
	uint8_t background;   /* work that may wait: counts against the device's background share */
	uint64_t expect_xxh3; /* DECODE */
	uint32_t skip_tokens; /* DECODE, COPY_IN: leading tokens of the block left untouched */
	void *out;	      /* ENCODE (a device that stages: unused), COPY_OUT */
	uint64_t out_cap_bytes;
	struct device_event *ready; /* the pages may be touched after it; NULL: now.  Borrowed */
	struct device_copy copy[DEVICE_COPIES_MAX]; /* MOVE */
	uint32_t copies_count;
	/* out, valid once poll() returned the task */
	int32_t res;	 /* 0 or negative errno */
	uint8_t refusal; /* DECODE on the CPU device, -ESTALE or -ENODEV: enum codec_refusal */
	struct codec_info info; /* ENCODE */
	/* ENCODE on a device that stages: where the payload of info.encoded_bytes lies (DEVICE).  It stays
	 * there until unstage(); only MOVE tasks may read it. */
	void *staged;
	/* FIT with fit_finish, FIT_LAYER: owned by the caller.  NULL when it is no better. */
	struct codec_profile
		*ret_profile;  /* FIT_MODEL: also when it is no better; the model is attached */
	uint32_t samples_kept; /* FIT with positions */
	/* Bits a scalar of stored blocks, all included.  FIT with fit_finish: of the last samples; FIT_LAYER:
	 * of samples that were not fitted on; FIT_MODEL: as the fit promises. */
	double bits_channel, bits_layer, bits_model, bits_rival;
	uint64_t busy_ns; /* time a worker spent on it, or its share of a batch's time on the GPU */
	/* while running: written by the worker, read by the lane (relaxed; a hint until completion) */
	_Atomic(uint32_t) segments_done; /* DECODE */
	/* owner's */
	void *user;
	/* the device's, while it has the task */
	void *device_user;
	struct device_task *device_next;
};

struct device;

struct device_ops {
	int (*start)(struct device *d, struct device_task *task);
	unsigned (*poll)(struct device *d, struct device_task **ret_done, unsigned max);
	/* Arm: after this returns 1, a completion signals the wake fd given at creation.  Returns 0 when
	 * completions are already waiting, or nobody would signal them (do not sleep). */
	int (*arm)(struct device *d);
	void (*disarm)(struct device *d);
	struct device *(*free)(struct device *d); /* drains running tasks first; returns NULL */
	const char *name;
	/* ---- the rest is of devices with memory of their own; NULL on the CPU device ---- */
	/* A task that has not touched anything yet completes soon with -ECANCELED: returns 1.  Else it
	 * runs to its end: returns 0. */
	int (*cancel)(struct device *d, struct device_task *task);
	/* The payload of a completed ENCODE is not needed any more.  Every staged one is given back. */
	void (*unstage)(struct device *d, void *staged);
	/* Can ENCODE with this profile, and DECODE of this payload, be done here?  Else the caller goes
	 * through COPY_OUT and COPY_IN and lets the CPU device code. */
	int (*can_encode)(struct device *d, const struct codec_geometry *g,
			  const struct codec_profile *profile, uint8_t speculator);
	int (*can_decode)(struct device *d, const struct codec_geometry *g,
			  const struct codec_profile *profile, const void *payload,
			  uint64_t payload_bytes);
	/* Host memory that MOVE, DECODE and COPY read or write at full speed; start-up only.  -errno. */
	int (*host_register)(struct device *d, void *base, uint64_t bytes);
	void (*host_unregister)(struct device *d, void *base, uint64_t bytes);
	/* Device memory for the GPU pool; given back by free().  -ENOMEM. */
	int (*pool_memory)(struct device *d, uint64_t bytes, void **ret_base);
	/* 0, or the sticky errno after which the device does nothing any more.  From any thread. */
	int (*dead)(struct device *d);
	/* No task with this profile will be started any more, and none is under way: forget it before
	 * its memory is used for another.  NULL: devices that remember none. */
	void (*profile_gone)(struct device *d, const struct codec_profile *profile);
	/* When the oldest work that the GPU has and has not ended was given to it (CLOCK_MONOTONIC, ns);
	 * 0: it has none.  What waits for an engine's event was not given to it yet. */
	uint64_t (*busy_since)(struct device *d);
	/* ---- sequences; NULL on devices that cannot do MODEL.  From the lane, while no task has the sequence ---- */
	/* An empty one.  g and profile are borrowed until it is freed.  -ENODATA: the profile has no model part;
	 * -ENODEV: its model is not attached; -EOPNOTSUPP: not this model, or not this geometry; -ENOMEM. */
	int (*sequence_new)(struct device *d, const struct codec_geometry *g,
			    const struct codec_profile *profile, struct device_sequence **ret);
	struct device_sequence *(*sequence_free)(struct device_sequence *s); /* takes NULL */
	/* Tokens that it holds; forget all but the first so many; bytes of memory for its prefix. */
	uint32_t (*sequence_position)(const struct device_sequence *s);
	void (*sequence_truncate)(struct device_sequence *s, uint32_t position);
	uint64_t (*sequence_bytes)(const struct device_sequence *s);
};

enum device_memory_type { /* as on the wire */
			  DEVICE_MEMORY_IPC_HANDLE = 1,
			  DEVICE_MEMORY_POSIX_FD = 2
};

#define DEVICE_UUID_BYTES 16u
#define DEVICE_HANDLE_BYTES 64u
#define DEVICE_ERR_BYTES 160u

struct device_import {
	uint32_t type; /* enum device_memory_type */
	int fd;	       /* POSIX_FD: borrowed */
	uint8_t handle[DEVICE_HANDLE_BYTES];
	uint8_t uuid[DEVICE_UUID_BYTES];
	uint64_t allocation_bytes; /* claimed; checked against the driver's word */
};

/*
 * Opening what an engine exports: called by the control thread while the lane uses the device, and may
 * block for milliseconds.  On failure *err has one line, DEVICE_ERR_BYTES at most: what was wrong.
 */
struct device_import_ops {
	/* -ENODEV: another device's uuid; -ERANGE: the allocation is smaller than claimed; -EINVAL: no such
	 * handle, or memory of this very process; -EIO; -ENOMEM.  *ret_base is a device address. */
	int (*memory_open)(struct device *d, const struct device_import *im,
			   struct device_memory **ret_memory, void **ret_base, char *err);
	/* Nothing may be using it any more.  Takes NULL. */
	void (*memory_close)(struct device *d, struct device_memory *memory);
	/* Make a checked region ready for the device's tasks, and undo it. */
	int (*region_open)(struct device *d, struct device_region *region);
	void (*region_close)(struct device *d, struct device_region *region);
	int (*event_open)(struct device *d, const uint8_t handle[DEVICE_HANDLE_BYTES],
			  struct device_event **ret_event, char *err);
	void (*event_close)(struct device *d, struct device_event *event);
	/* Called by the lane: mark in the event that all work completed so far is done. */
	int (*event_record)(struct device *d, struct device_event *event);
};

struct device_facts {
	char model[64];			 /* "NVIDIA H200" */
	uint8_t uuid[DEVICE_UUID_BYTES]; /* as cuDeviceGetUuid gives it */
	int numa_node;			 /* of the PCIe slot; -1: unknown */
	uint64_t memory_bytes;		 /* of the card */
	uint64_t staging_bytes;		 /* taken for work in flight */
	uint64_t block_bytes_max;	 /* raw bytes of the largest block that fits there */
	uint64_t
		footprint_bytes; /* all that this process takes of the card beside the pool; 0: unknown */
};

struct device { /* first member of every implementation */
	const struct device_ops *ops;
	const struct device_import_ops *import; /* NULL: host memory only */
	const struct device_facts *facts;	/* NULL: the CPU device */
	unsigned tasks_max;			/* tasks that may be started and not yet polled */
	unsigned sequence_tasks;		/* of these with one sequence */
};

/*
 * Check a layout against an allocation: every element of every block must lie inside it, rows must not
 * overlap, strides must be multiples of the element size.  Returns 0, -ERANGE (outside the
 * allocation), -EINVAL (overlap, misalignment or a zero), -ENOMEM.
 */
int device_region_init(struct device_region *r, const struct codec_geometry *geom, void *base,
		       uint64_t bytes, uint32_t blocks_count, const struct codec_stride *stride,
		       const uint64_t *block_stride);

struct device_part { /* an allocation that segments of a region lie in */
	void *base;  /* as memory_open gave it */
	uint64_t bytes;
};

/*
 * The same for a region whose segments lie in one or more allocations of one device: segment i in
 * parts[segment_part[i]], with its off counted from there, and checked against that allocation alone.
 * The region's base is the lowest allocation's address, and its offs are counted from that.  Overlap is
 * looked for by address, so that an allocation named twice hides none (one that the device maps at two
 * addresses does, to the cost of its owner's own bytes).  parts_count > 0; parts may be in any order.
 */
int device_region_init_parts(struct device_region *r, const struct codec_geometry *geom,
			     const struct device_part *parts, uint32_t parts_count,
			     const uint32_t *segment_part, uint32_t blocks_count,
			     const struct codec_stride *stride, const uint64_t *block_stride);
void device_region_deinit(struct device_region *r);

/* workers: 1..64 threads.  wake_fd: an eventfd, borrowed, written (8 bytes) when armed.  spin_ns: how long
 * an idle worker polls before it sleeps. */
int cpu_device_new(unsigned workers, unsigned tasks_max, int wake_fd, uint64_t spin_ns,
		   struct device **ret_device);

/* How the threads run that do what may wait: fits of maps and coding in the background.  Before the first
 * such task. */
enum device_priority {
	DEVICE_PRIORITY_IDLE, /* when nobody else wants the core */
	DEVICE_PRIORITY_LOW,
	DEVICE_PRIORITY_NORMAL,
	DEVICE_PRIORITY_COUNT
};
void cpu_device_priority(struct device *d, enum device_priority priority);

/* spec: "encode:eio:every=7,decode:delay_ms=5:every=3" - takes ownership of inner on success. */
int fault_device_new(struct device *inner, const char *spec, struct device **ret_device);

struct gpu_device_options {
	const char *
		which; /* "auto": the first; an ordinal; or a UUID, "GPU-..." as nvidia-smi shows it */
	unsigned tasks_max;
	int wake_fd;		/* borrowed; written when armed */
	uint64_t staging_bytes; /* device memory for work in flight */
	unsigned share_percent; /* 1..100: of the GPU's time for all coding; 100: no bound */
	unsigned
		background_percent; /* 1..100: share of the GPU's time that background tasks may take */
};

/*
 * A GPU that is not one: "device memory" is memfds (imported as POSIX fds) or named by handle, "events" are
 * words in them.  The codec runs on workers.  Behaves like the CUDA device where a lane can tell: it
 * stages, batches, waits for ready events, cancels and dies.  For tests and `[gpu] device = sim`.
 */
int sim_device_new(const struct gpu_device_options *options, struct device **ret_device);

/*
 * Load the shared object with the CUDA device and make one.  library: its path.  -ENOENT: no such file, no
 * driver or no GPU: serve without; other errors: say so.  err: one line, DEVICE_ERR_BYTES.
 */
int cuda_load_device(const char *library, const struct gpu_device_options *options,
		     struct device **ret_device, char *err);

/* What the shared object exports, found by its name. */
#define CUDA_DEVICE_SYMBOL "skvcd_cuda_device_new_v1"
typedef int (*cuda_device_new_fn)(const struct gpu_device_options *options,
				  struct device **ret_device, char *err);

/*
 * A device for tasks with a sequence and no others: predictor.h.  Regions lie in host memory.  One beside the device
 * that has the GPU, on the same card.
 */
struct predictor_options {
	const char *
		which; /* as struct gpu_device_options; ENCODE and DECODE of other speculators: the CPU */
	unsigned tasks_max;	     /* also with one sequence */
	int wake_fd;		     /* borrowed; written when armed */
	uint32_t batch_tokens;	     /* at most so many go through the model at a time */
	uint32_t positions_max;	     /* of a sequence; PREDICTOR_POSITIONS_MAX at most */
	unsigned background_percent; /* 1..100: of the time, for background tasks */
};

#define PREDICTOR_POSITIONS_MAX 65536u

int sim_predictor_new(const struct predictor_options *options, struct device **ret_device);
int cuda_load_predictor(const char *library, const struct predictor_options *options,
			struct device **ret_device, char *err);

#define CUDA_PREDICTOR_SYMBOL "skvcd_cuda_predictor_new_v1"
typedef int (*cuda_predictor_new_fn)(const struct predictor_options *options,
				     struct device **ret_device, char *err);

#endif
