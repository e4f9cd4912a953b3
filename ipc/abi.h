/* SPDX-License-Identifier: Apache-2.0 */
/*
 * abi.h - the shared-memory contract between a client process and skvcd: one session's memfd, its two
 * rings, its argument area and its lease words.  PROTOCOL.md draws every byte.
 *
 * The daemon makes and seals the memfd; the client is untrusted.  The daemon copies every entry out
 * once, checks the copy (sqe_check.h) and uses only the copy.  Nothing the daemon relies on lies here.
 *
 * Only fixed-width integers; offsets count bytes from the start of the segment; reserved fields are
 * written zero and refused when not zero.
 */
#ifndef SKVCD_IPC_ABI_H
#define SKVCD_IPC_ABI_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#define SKVC_ABI_MAGIC 0x43564b53u /* "SKVC" */
#define SKVC_ABI_MAJOR 1u	   /* layout: must be equal on both sides */
#define SKVC_ABI_MINOR 2u	   /* additions only; 1: GPU memory and events; 2: NS_PREFILL */

#define SKVC_ABI_KEY_BYTES 32u
#define SKVC_ABI_KEY_BYTES_MIN 16u
#define SKVC_ABI_BLOCKS_MAX 4096u	     /* blocks in one operation */
#define SKVC_ABI_TOKENS_MAX 65536u	     /* token ids in one operation */
#define SKVC_ABI_ARGS_BYTES_MAX (1u << 20)   /* argument list of one operation */
#define SKVC_ABI_LEASES_MAX 1024u	     /* lease words of one session */
#define SKVC_ABI_BLOCK_TOKENS_MAX 1024u	     /* tokens of one block */
#define SKVC_ABI_SEGMENT_ELEMENTS_MAX 65536u /* heads * head_dim */
#define SKVC_ABI_SQ_ENTRIES_MIN 8u	     /* and a power of two */
#define SKVC_ABI_SQ_ENTRIES_MAX 4096u
#define SKVC_ABI_PAGE_BYTES 4096u /* unit of args_bytes, args_off and segment_bytes */
#define SKVC_ABI_ARGS_AREA_BYTES_MIN (64u << 10)
#define SKVC_ABI_ARGS_AREA_BYTES_MAX (64u << 20)
#define SKVC_ABI_TTL_NS_MAX (24ull * 3600 * 1000000000ull)

/* ---- the segment ---- */

/* One index on a cache line of its own; `wait` belongs to the side that reads the index. */
struct skvc_abi_index {
	uint32_t value; /* free-running; mask at use */
	uint32_t wait;	/* 1: its reader sleeps and wants a wake-up */
	uint8_t reserved[56];
};

struct skvc_abi_header { /* offset 0; written by the daemon before the fd is sent */
	uint32_t magic;
	uint16_t abi_major;
	uint16_t abi_minor;
	uint32_t header_bytes; /* sizeof(struct skvc_abi_header) */
	uint32_t entry_bytes;  /* 64 */
	uint64_t segment_bytes;
	uint64_t features;   /* SKVC_ABI_FEATURE_* */
	uint32_t sq_entries; /* power of two */
	uint32_t cq_entries; /* power of two, >= 4 * sq_entries */
	uint64_t sq_off;
	uint64_t cq_off;
	uint64_t leases_off; /* struct skvc_abi_lease_word[leases_count] */
	uint32_t leases_count;
	uint32_t session_id;
	uint64_t args_off; /* owned by the client: argument lists and results */
	uint64_t args_bytes;
	uint8_t reserved0[40];
	uint32_t daemon_state; /* SKVC_ABI_DAEMON_*; written by the daemon, release */
	uint32_t reserved1;
	uint64_t end_reason; /* why the session ended (SKVC_REASON_*), with DAEMON_CLOSED */
	uint8_t reserved2[48];
	/* sq_tail: client writes, lane reads.  sq_head: lane writes, client reads.  And mirrored. */
	struct skvc_abi_index sq_tail;
	struct skvc_abi_index sq_head;
	struct skvc_abi_index cq_tail;
	struct skvc_abi_index cq_head;
};

/*
 * CLOSED, like the end of the socket, says two things: no entry will be taken any more, and nothing of the
 * daemon touches the client's memory any more.  So it comes after the session's jobs have drained; then
 * end_reason is written, daemon_state (release), what wakes the client, and the control socket is closed.
 */
enum skvc_abi_daemon_state {
	SKVC_ABI_DAEMON_OPEN = 1,
	SKVC_ABI_DAEMON_CLOSED = 2 /* see end_reason */
};

/*
 * Progress of a lease, polled by the client without a call.  Written by the lane only: generation 0
 * first when a word gets a new lease, the fields, generation last (release).  A word whose generation
 * differs from the handle's: the lease is over.
 */
struct skvc_abi_lease_word {
	uint32_t generation;
	uint32_t blocks_hit;   /* length of the leased prefix */
	uint32_t blocks_ready; /* leading blocks that need not be waited for (lost ones too) */
	uint32_t blocks_lost;  /* of these, could not be promoted: will be misses */
	uint64_t deadline_ns;  /* CLOCK_MONOTONIC */
	uint64_t reserved;
};

/* ---- submission ---- */

enum skvc_abi_op {
	SKVC_ABI_OP_NOP = 0,
	SKVC_ABI_OP_LOOKUP = 1,	 /* keys [tokens] -> lease */
	SKVC_ABI_OP_LOAD = 2,	 /* lease, keys_first.., blocks -> engine pages */
	SKVC_ABI_OP_STORE = 3,	 /* keys, blocks [parent] [tokens] */
	SKVC_ABI_OP_RELEASE = 4, /* lease */
	SKVC_ABI_OP_TOUCH = 5,	 /* keys */
	SKVC_ABI_OP_DROP = 6,	 /* keys */
	SKVC_ABI_OP_PIN = 7,	 /* keys, arg = ttl_ns (0 = unpin) */
	SKVC_ABI_OP_ABORT = 8,	 /* arg = user_data of the job */
	SKVC_ABI_OP_COUNT
};

#define SKVC_ABI_SQE_TOKENS 0x01u	  /* token ids follow: LOOKUP, STORE */
#define SKVC_ABI_SQE_PARENT 0x02u	  /* keys[0]'s parent precedes the keys: STORE, LOOKUP */
#define SKVC_ABI_SQE_LAYER_PROGRESS 0x04u /* LOAD: count finished segments into result words */
#define SKVC_ABI_SQE_FLAGS 0x07u

/* One key as it lies in an argument list. */
struct skvc_abi_key {
	uint8_t bytes[SKVC_ABI_KEY_BYTES]; /* unused tail is zero */
	uint32_t group;
	uint8_t len; /* 16..32 */
	uint8_t reserved[3];
};

/*
 * The argument list of an operation lies at args_off + args_rel, args_bytes long, and is exactly, in
 * this order: [parent key, with SQE_PARENT] [count keys] [count u32 block indices, LOAD and STORE]
 * [count * block_tokens u32 token ids, with SQE_TOKENS].  LOAD has no keys: it names a lease and the
 * first block in it (`first`).
 *
 * LOAD and STORE write results at result_rel when result_bytes is not zero: (count + 63) / 64 u64 words,
 * one bit per block, bit set = done; then, with SQE_LAYER_PROGRESS, one u64 word with the number of
 * leading segments written so far.  result_bytes is 0 or exactly that.
 *
 * A field that the operation does not name in the comments below is zero.
 */
struct skvc_abi_sqe {
	uint8_t opcode;
	uint8_t flags;
	uint16_t reserved0;
	uint32_t ns;	    /* namespace handle; LOAD, RELEASE: 0, the lease names it */
	uint64_t user_data; /* returned in every completion; unique among live jobs */
	uint32_t count;	    /* blocks */
	uint32_t region;    /* region handle: LOAD, STORE */
	uint32_t args_rel;  /* multiple of 8 */
	uint32_t args_bytes;
	uint64_t lease;	      /* LOAD, RELEASE */
	uint32_t first;	      /* LOAD: first block of the lease to load */
	uint32_t skip_tokens; /* LOAD: leading tokens of the first block to leave alone */
	uint32_t result_rel;  /* multiple of 8 */
	uint32_t result_bytes;
	/* LOOKUP: lease ttl_ns; PIN: ttl_ns; ABORT: user_data; LOAD, STORE: skvc_abi_events() */
	uint64_t arg;
};

/* ---- completion ---- */

enum skvc_abi_cqe_kind {
	SKVC_ABI_CQE_DONE = 0,	     /* last completion of this job (a store: COMMITTED) */
	SKVC_ABI_CQE_SOURCE_FREE = 1 /* store: the engine's pages may be reused; DONE follows */
};

struct skvc_abi_cqe {
	uint64_t user_data;
	int32_t res;	 /* 0 or negative errno of the closed list in skvc.h */
	uint16_t reason; /* enum skvc_abi_reason: why, when not plain success */
	uint8_t kind;
	uint8_t reserved0;
	uint32_t count;	       /* LOOKUP: prefix length; LOAD, STORE: blocks done */
	uint32_t pending;      /* LOOKUP: of these, still coming from NVMe */
	uint64_t lease;	       /* LOOKUP */
	uint64_t raw_bytes;    /* LOAD, STORE: of the blocks done */
	uint64_t stored_bytes; /* compressed bytes of these */
	uint64_t elapsed_ns;   /* from intake to this completion, daemon's clock */
	uint64_t reserved1;
};

/* ---- why something was refused: also the index of the daemon's counters; append only ---- */

#define SKVC_ABI_REASONS(X)                                                                      \
	X(NONE, "ok", "nothing to report")                                                       \
	X(MISS, "miss", "no such block")                                                         \
	X(TOKENS_DIFFER, "tokens-differ", "key found, but its token ids are others")             \
	X(PARENT_DIFFERS, "parent-differs", "key found, but under another parent")               \
	X(DUPLICATE, "duplicate", "block is stored already")                                     \
	X(POOL_FULL, "pool-full", "no room in the host pool at this moment")                     \
	X(QUOTA, "quota", "the tenant's quota of compressed bytes is used up")                   \
	X(INDEX_FULL, "index-full", "as many blocks as the index can hold")                      \
	X(JOBS_FULL, "jobs-full", "as many operations in flight as allowed")                     \
	X(LEASES_FULL, "leases-full", "as many leases as allowed")                               \
	X(LEASE_GONE, "lease-gone", "lease released, expired or never given")                    \
	X(ABORTED, "aborted", "the client aborted it")                                           \
	X(NO_SUCH_JOB, "no-such-job", "no live job has this user_data")                          \
	X(BAD_OPCODE, "bad-opcode", "unknown operation")                                         \
	X(BAD_FLAGS, "bad-flags", "unknown flag, or one that this operation does not take")      \
	X(BAD_RESERVED, "bad-reserved", "a reserved field is not zero")                          \
	X(BAD_COUNT, "bad-count", "count is zero or above the limit")                            \
	X(BAD_ARGS, "bad-args",                                                                  \
	  "argument list outside its area, misaligned or of the wrong length")                   \
	X(BAD_RESULT, "bad-result", "result area outside the argument area, or too small")       \
	X(BAD_KEY, "bad-key", "key length outside 16..32, or padding not zero")                  \
	X(BAD_NAMESPACE, "bad-namespace", "no such namespace handle in this session")            \
	X(BAD_REGION, "bad-region", "no such region handle, or it belongs to another namespace") \
	X(BAD_BLOCK, "bad-block", "block index outside the region")                              \
	X(BAD_TTL, "bad-ttl", "time to live above the limit")                                    \
	X(RING_OVERRUN, "ring-overrun", "more entries published than the ring holds")            \
	X(BAD_MESSAGE, "bad-message", "malformed control message")                               \
	X(VERSION, "version", "protocol versions do not meet")                                   \
	X(CORRUPT, "corrupt", "stored bytes did not match their checksum")                       \
	X(PROFILE_GONE, "profile-gone", "the profile that coded the block is gone")              \
	X(IO_ERROR, "io-error", "the NVMe tier returned an error")                               \
	X(IO_TIMEOUT, "io-timeout", "the NVMe tier did not answer in time")                      \
	X(DEVICE_ERROR, "device-error", "the compute device failed")                             \
	X(CLIENT_GONE, "client-gone", "the client closed its socket or died")                    \
	X(SHUTDOWN, "shutdown", "the daemon is stopping")                                        \
	X(SESSIONS_FULL, "sessions-full", "as many sessions as allowed")                         \
	X(NOT_PERMITTED, "not-permitted", "this user or role may not do that")                   \
	X(MEMORY_LIMIT, "memory-limit", "arena bytes above the session's or the daemon's limit") \
	X(TOO_LARGE, "too-large", "one block does not fit the pool's largest class")             \
	X(ROLE, "role", "a scheduler session has no memory to load or store")                    \
	X(DAEMON_GONE, "daemon-gone",                                                            \
	  "the daemon died or hung up; said by the library, never by it")                        \
	X(DEVICE_GONE, "device-gone",                                                            \
	  "the GPU has failed; GPU memory is not served until the daemon is restarted")          \
	X(BAD_EVENT, "bad-event",                                                                \
	  "no such event handle in this session, or it was not reached in time")                 \
	X(BAD_LAYOUT, "bad-layout", "the layout does not fit the allocation")                    \
	X(BAD_MEMORY, "bad-memory", "the GPU memory or event could not be opened")               \
	X(PREFIX_GONE, "prefix-gone",                                                            \
	  "the block was coded after blocks of its sequence that are gone, or are others now")   \
	X(MODEL_GONE, "model-gone",                                                              \
	  "the model that coded the block is not loaded; skvcctl model add loads it")            \
	X(RECOMPUTE, "recompute",                                                                \
	  "the engine computes the rest sooner than it could be restored, by its own word")      \
	X(NOT_ADMITTED, "not-admitted", "blocks like it are hardly ever asked for again")        \
	X(USER_SESSIONS, "user-sessions", "as many sessions as one user may have")               \
	X(NAMESPACES_FULL, "namespaces-full", "as many namespaces as allowed")                   \
	X(TENANT_NAMESPACES, "tenant-namespaces", "as many namespaces as one tenant may have")   \
	X(LEASE_SHARE, "lease-share", "the tenant's leases, or pins, hold as much as they may")  \
	X(NO_ANSWER, "no-answer",                                                                \
	  "the daemon did not answer in time, and may still write to the job's pages until "     \
	  "skvc_reconnect() succeeded; said by the library, never by it")

enum skvc_abi_reason {
#define SKVC_ABI_REASON_ENUM(name, word, text) SKVC_ABI_REASON_##name,
	SKVC_ABI_REASONS(SKVC_ABI_REASON_ENUM)
#undef SKVC_ABI_REASON_ENUM
		SKVC_ABI_REASON_COUNT
};

/* ---- geometry, as it travels on the socket ---- */

struct skvc_abi_segment {
	uint8_t kind;  /* 0 opaque, 1 K, 2 V, 3 latent */
	uint8_t dtype; /* 0 u8, 1 bf16, 2 fp16, 3 e4m3, 4 e5m2 */
	uint16_t layer;
	uint16_t heads;
	uint16_t head_dim;
};

struct skvc_abi_stride { /* one per segment of a region */
	uint64_t off;
	uint64_t block_stride;
	uint64_t token_stride;
	uint64_t head_stride;
};

/* One per segment of a region in GPU memory.  Segments may lie in different allocations. */
struct skvc_abi_gpu_stride {
	uint32_t memory; /* handle of the allocation */
	uint32_t reserved;
	uint64_t off; /* from the start of the allocation */
	uint64_t block_stride;
	uint64_t token_stride;
	uint64_t head_stride;
};

/*
 * The events of a LOAD or STORE, as they lie in its arg: {done:32, ready:32}, handles of EVENT_GPU, 0: none.
 * ready: the pages may be touched after it.  done, LOAD only: recorded when all that the load writes is in
 * place, before its DONE is published.
 */
static inline uint64_t skvc_abi_events(uint32_t ready, uint32_t done)
{
	return (uint64_t)done << 32 | ready;
}

static inline uint32_t skvc_abi_ready_event(uint64_t arg)
{
	return (uint32_t)arg;
}

static inline uint32_t skvc_abi_done_event(uint64_t arg)
{
	return (uint32_t)(arg >> 32);
}

/* ---- handles: {generation:32, index:32}; 0 is no handle ---- */

static inline uint64_t skvc_abi_handle(uint32_t index, uint32_t generation)
{
	return (uint64_t)generation << 32 | index;
}

static inline uint32_t skvc_abi_handle_index(uint64_t handle)
{
	return (uint32_t)handle;
}

static inline uint32_t skvc_abi_handle_generation(uint64_t handle)
{
	return (uint32_t)(handle >> 32);
}

/*
 * A lease's handle is valid in every session of its tenant; its word lies in the segment of the session
 * that looked up, at the low 16 bits of the index.
 */
static inline uint32_t skvc_abi_lease_word_index(uint64_t lease)
{
	return (uint32_t)lease & 0xffffu;
}

#ifndef __cplusplus
_Static_assert(sizeof(struct skvc_abi_index) == 64, "one cache line");
_Static_assert(sizeof(struct skvc_abi_header) == 448, "header");
_Static_assert(offsetof(struct skvc_abi_header, daemon_state) == 128,
	       "daemon_state on its own line");
_Static_assert(offsetof(struct skvc_abi_header, sq_tail) == 192, "indices follow");
_Static_assert(sizeof(struct skvc_abi_lease_word) == 32, "lease word");
_Static_assert(sizeof(struct skvc_abi_key) == 40, "key");
_Static_assert(sizeof(struct skvc_abi_sqe) == 64, "submission entry");
_Static_assert(offsetof(struct skvc_abi_sqe, lease) == 32, "submission entry");
_Static_assert(offsetof(struct skvc_abi_sqe, arg) == 56, "submission entry");
_Static_assert(sizeof(struct skvc_abi_cqe) == 64, "completion entry");
_Static_assert(sizeof(struct skvc_abi_segment) == 8, "segment");
_Static_assert(sizeof(struct skvc_abi_stride) == 32, "stride");
_Static_assert(sizeof(struct skvc_abi_gpu_stride) == 40, "stride in GPU memory");
#endif

#endif
