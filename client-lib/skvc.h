/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvc.h - libskvc, the client library of skvcd: offload blocks of a KV cache, get them back byte-exact.
 *
 * The two calls to start with are skvc_put() and skvc_get().  Engines use the asynchronous calls:
 * lookup -> lease -> load, and store, over one session per process role.
 *
 * Rules that hold for every call
 *  - Returns 0 (or a documented positive value) or a negative errno; errno itself is not used.  A
 *    submitting call that returns < 0 will never complete; one that returns 0 completes exactly once,
 *    later, through skvc_poll() or skvc_wait().  Output parameters are untouched on failure.
 *  - Threads: a session and all that belongs to it may be used by any thread, one at a time.  Different
 *    sessions are independent.  The library starts no thread, installs no signal handler, and never
 *    writes to stdout or stderr, nor aborts its host.
 *  - fork(): a session does not survive it in the child; every call there returns -EOWNERDEAD, and skvc_close()
 *    frees the child's copy: not to be called when another thread was inside the session at the fork.
 *  - The cache is best effort in one direction only: a store may be refused, a lookup may miss; a load
 *    that reports success delivered exactly the bytes that were stored.
 *  - When the daemon is gone, pending jobs complete with -EPIPE within 100 ms and every later call
 *    returns -EPIPE until skvc_reconnect() succeeds.  An engine treats that as a miss and goes on.
 *  - A daemon that is stopped, or hangs, is not gone.  Calls that wait inside wait as long as skvc_options.timeout_ns:
 *     -ETIME: it was not done in time, and goes on; nothing else is different, and the call may be repeated.
 *     -ETIMEDOUT: the daemon did not answer a request in time.  The connection is given up, as if it were gone: pending
 *    jobs end with -EPIPE, reason "no-answer", and every later call returns -EPIPE.  But when the daemon goes on it may
 *    still write to the pages of loads that were pending, and has GPU memory open that was registered.  That is over
 *    when skvc_reconnect() or skvc_unregister() has returned 0: both wait until the daemon has let go of the old
 *    connection, or has died, and return -ETIMEDOUT when it has not.  Until then use none of these pages, and free no
 *    GPU memory; an arena may be freed at any time, as what the daemon writes to is no memory of this process then.
 *
 * The closed list of completion errors (skvc_completion.res):
 *  0, -ENOENT (miss), -ENODATA (stored bytes were lost or corrupt: a miss), -EAGAIN (no room now),
 *  -EDQUOT (quota), -EEXIST, -ECANCELED (aborted), -ESTALE (lease or handle is over), -EINVAL,
 *  -EPERM, -EIO (device failed), -EPIPE (daemon gone).  `reason` says which of several causes it was.
 */
#ifndef SKVC_H
#define SKVC_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SKVC_VERSION_MAJOR 0
#define SKVC_VERSION_MINOR 1
#define SKVC_VERSION_PATCH 0

#define SKVC_DEFAULT_SOCKET "/run/skvcd/skvcd.sock"
#define SKVC_KEY_BYTES 32
#define SKVC_BLOCKS_MAX 4096   /* in one operation */
#define SKVC_SEGMENTS_MAX 1024 /* of one geometry */
#define SKVC_WAIT_FOREVER UINT64_MAX

struct skvc_session;
struct skvc_arena;

/* ---- names of things ---- */

/* A block's name: the engine's own chained block hash, 16..32 bytes, and its group (0 if none). */
struct skvc_key {
	uint8_t bytes[SKVC_KEY_BYTES]; /* unused tail must be zero */
	uint32_t group;
	uint8_t len;	     /* 16..32 */
	uint8_t reserved[3]; /* zero */
};

enum skvc_kind { SKVC_KIND_OPAQUE = 0, SKVC_KIND_K = 1, SKVC_KIND_V = 2, SKVC_KIND_LATENT = 3 };

enum skvc_dtype {
	SKVC_DTYPE_U8 = 0, /* bytes of unknown meaning */
	SKVC_DTYPE_BF16 = 1,
	SKVC_DTYPE_FP16 = 2,
	SKVC_DTYPE_E4M3 = 3,
	SKVC_DTYPE_E5M2 = 4
};

/* One tensor's share of a block: block_tokens x heads x head_dim elements. */
struct skvc_segment {
	uint8_t kind;  /* enum skvc_kind */
	uint8_t dtype; /* enum skvc_dtype */
	uint16_t layer;
	uint16_t heads;	   /* 1..65535 */
	uint16_t head_dim; /* elements; heads * head_dim <= 65536 */
};

/*
 * A namespace: one KV geometry of one tenant.  Everything here is part of the identity of its blocks;
 * two engines share blocks only if all of it is equal and the daemon takes them for the same tenant.
 */
struct skvc_geometry {
	const char *model;	 /* name and revision of the model, 1..255 bytes */
	const void *salt;	 /* engine's own separation (LoRA, cache_salt ...); may be NULL */
	size_t salt_bytes;	 /* 0..64 */
	uint32_t block_tokens;	 /* tokens of a block, 1..1024 */
	uint32_t segments_count; /* 1..1024 */
	const struct skvc_segment *segments; /* borrowed for the call */
};

/* Where a segment lies in a registered memory, bytes.  Elements of one head are contiguous. */
struct skvc_stride {
	uint64_t off; /* of block 0, token 0, head 0 */
	uint64_t block_stride;
	uint64_t token_stride;
	uint64_t head_stride;
};

/* ---- session ---- */

enum skvc_role {
	SKVC_ROLE_WORKER = 0,	/* may register memory, load and store */
	SKVC_ROLE_SCHEDULER = 1 /* looks up, leases, touches; has no memory */
};

struct skvc_options {		     /* zero-initialise; all fields are optional */
	uint32_t role;		     /* enum skvc_role */
	uint32_t sq_entries;	     /* power of two, 8..4096; 0: 256 */
	uint64_t args_bytes;	     /* argument area, 64 KiB..64 MiB; 0: 2 MiB */
	uint64_t connect_timeout_ns; /* 0: 5 s */
	/* skvc_wait() polls this long, then sleeps; 0: 50 us; UINT64_MAX: it never sleeps */
	uint64_t spin_ns;
	const char *name;			   /* shown in `skvcctl stats`; <= 63 bytes */
	void (*log)(void *user, const char *line); /* diagnostics; NULL: none */
	void *log_user;
	/*
	 * How long a call that waits inside may wait for the daemon; 0: 60 s; SKVC_WAIT_FOREVER: as long as it takes.
	 * These are skvc_namespace_*, skvc_arena_*, skvc_register_*, skvc_unregister, skvc_abort, skvc_put, skvc_get,
	 * and each request of skvc_reconnect().  skvc_arena_new() waits 1 s per GiB longer.  An engine that would
	 * rather go on without its cache takes some seconds.
	 */
	uint64_t timeout_ns;
};

/*
 * Connect to skvcd at a Unix socket path (NULL: SKVC_DEFAULT_SOCKET, or $SKVC_SOCKET when set).
 * -ENOENT, -ECONNREFUSED: no daemon there; -EACCES: the socket's permissions; -EPROTO: versions do not
 * meet or the daemon answered nonsense; -EPERM: refused; -EUSERS: as many sessions as allowed, of all users
 * or of this one;
 * -ETIMEDOUT; -ENOMEM; -EINVAL.
 */
int skvc_open(const char *path, const struct skvc_options *options,
	      struct skvc_session **ret_session);

/* End the session.  Waits until nothing touches this session's memory any more (bounded: timeout_ns, 5 s at most;
 * the log says when that was not enough), drops its leases, frees its arenas.  Accepts NULL, returns NULL. */
struct skvc_session *skvc_close(struct skvc_session *session);

/*
 * After -EPIPE: connect again with the same options, open the same namespaces and re-create arenas and
 * regions under their old handles and addresses (their contents are kept; nobody may write to them
 * during the call).  Pending jobs have completed with -EPIPE and can still be taken; leases are gone.
 * First it waits until the daemon has let go of the old connection, if it is not dead.  Both that, and to connect,
 * may take connect_timeout_ns.
 * Errors as skvc_open; -EISCONN: the daemon is there.  On failure the session stays unusable and the
 * call may be repeated.
 */
int skvc_reconnect(struct skvc_session *session);

/* One line about the last failed call of this session, never NULL; valid until the next call. */
const char *skvc_last_error(const struct skvc_session *session);
const char *skvc_reason_name(uint16_t reason); /* "pool-full"; "unknown" above the list */
const char *skvc_reason_text(uint16_t reason);
const char *skvc_version(void); /* "0.1.0" */

/*
 * ---- namespaces and memory: blocking calls on the control socket, not for the hot path ----
 *
 * Each may return -ETIMEDOUT, too: no answer within timeout_ns, and the connection is given up.
 */

/* -EINVAL (says which field in skvc_last_error), -EUSERS (too many, of all or of this tenant),
 * -EFBIG: a block does not fit the pool */
int skvc_namespace_open(struct skvc_session *session, const struct skvc_geometry *geometry,
			uint32_t *ret_ns);

/*
 * How fast the engine computes tokens of this namespace that it does not find.  From then on a lookup ends
 * before blocks that would take longer to restore than to compute (reason "recompute"); say it again when it
 * changes; 0: find whatever is there, as in the beginning.  The last one said by any session holds.
 * -EINVAL; -EOPNOTSUPP: the daemon is older than 1.2.
 */
int skvc_namespace_prefill(struct skvc_session *session, uint32_t ns, uint64_t tokens_per_s);

/* Host memory shared with the daemon, pinned and NUMA-placed by it.  bytes is rounded up to pages.
 * -ENOMEM, -EDQUOT (above the session's limit), -EPERM (scheduler role). */
int skvc_arena_new(struct skvc_session *session, uint64_t bytes, struct skvc_arena **ret_arena);
/* Unregisters its regions (waiting for their jobs), unmaps it.  When that is not done within timeout_ns the connection
 * is given up, and the arena unmapped all the same.  Accepts NULL, returns NULL. */
struct skvc_arena *skvc_arena_free(struct skvc_arena *arena);
void *skvc_arena_ptr(const struct skvc_arena *arena); /* page aligned; lives as long as the arena */
uint64_t skvc_arena_bytes(const struct skvc_arena *arena);

/*
 * Describe where the blocks of a namespace lie in an arena: strides[segments_count], or NULL for the
 * packed form [block][segment][token][head][dim].  Checked against the arena, never guessed:
 * -ERANGE outside the arena, -EINVAL overlapping or misaligned.  `offset` is added to all.
 */
int skvc_register_host(struct skvc_session *session, uint32_t ns, struct skvc_arena *arena,
		       uint64_t offset, uint32_t blocks_count, const struct skvc_stride *strides,
		       uint32_t *ret_region);

enum skvc_gpu_memory { SKVC_GPU_IPC_HANDLE = 1, SKVC_GPU_POSIX_FD = 2 };

/*
 * One allocation of the engine's GPU memory, whole.  A legacy IPC handle names all of the allocation that
 * a pointer lies in (of a caching allocator: the segment it cut the tensor from), never just the tensor:
 * the tensor's distance from the allocation's start belongs into off (or offset).
 */
struct skvc_gpu_export {	   /* zero-initialise */
	uint32_t type;		   /* enum skvc_gpu_memory */
	int fd;			   /* SKVC_GPU_POSIX_FD: borrowed for the call */
	uint8_t ipc_handle[64];	   /* SKVC_GPU_IPC_HANDLE: cudaIpcMemHandle_t */
	uint8_t device_uuid[16];   /* never an ordinal: CUDA_VISIBLE_DEVICES differs per process */
	uint64_t allocation_bytes; /* checked against what the driver says */
	uint64_t offset; /* packed form only: of block 0 in the allocation, bytes; else 0 */
};

/* Where a segment lies, all in bytes.  Elements of one head are contiguous. */
struct skvc_gpu_stride {
	uint32_t memory;       /* index into memories[] */
	uint32_t reserved;     /* 0 */
	uint64_t off;	       /* of block 0, token 0, head 0 from the start of that allocation */
	uint64_t block_stride; /* from a block to the next; and so on */
	uint64_t token_stride;
	uint64_t head_stride;
};

/*
 * The engine's own GPU memory: memories[] are the allocations that the region's blocks lie in, strides[]
 * says where, one per segment of the namespace; NULL is the packed form, in memories[0] from its offset.
 *
 * Layouts, for blocks of T tokens with H heads of D elements of E bytes, and N blocks; t is the tensor's
 * distance from the start of its allocation, P = T * H * D * E one block of K or V of one layer:
 *
 *   tensor of a layer		off of K, off of V	block_stride	token_stride	head_stride
 *   [2, N, T, H, D] (NHD)	t, t + N * P		P		H * D * E	D * E
 *   [2, N, H, T, D] (HND)	t, t + N * P		P		D * E		T * D * E
 *   [N, 2, T, H, D]		t, t + P		2 * P		H * D * E	D * E
 *   [N, T, H, 2 * D] fused	t, t + D * E		2 * P		2 * H * D * E	2 * D * E
 *   [N, L, 2, T, H, D], layer l of L, one tensor for all layers:
 *				t + 2 * l * P, + P	2 * L * P	H * D * E	D * E
 *   [N, T, 576] (MLA; one segment, H = 1, D = 576)
 *				t			T * 576 * E	576 * E		576 * E
 *
 * The layout is checked, never guessed: every element of every block inside its allocation (-ERANGE),
 * no two of them in one place, everything a multiple of the element (-EINVAL).
 *
 * The exporting process must keep the allocations until skvc_unregister() returned or the session ended.
 * What becomes of one that is freed earlier, CUDA leaves undefined: the engine's own blocks may be wrong.
 *
 * -EOPNOTSUPP: the daemon serves no GPU; -ENODEV: it serves another one; -ERANGE; -EINVAL: also a handle
 * that cannot be opened; -EDQUOT: more handles or segments than a session may have; -EPERM: scheduler role;
 * -EIO: the GPU has failed; -ENOMEM.  skvc_last_error() has the daemon's line.
 */
int skvc_register_gpu(struct skvc_session *session, uint32_t ns,
		      const struct skvc_gpu_export *memories, uint32_t memories_count,
		      uint32_t blocks_count, const struct skvc_gpu_stride *strides,
		      uint32_t *ret_region);
/*
 * An interprocess event (cudaIpcEventHandle_t) of the same GPU: the ready_event of a store or load, the
 * done_event of a load.  skvc_unregister() forgets it.  Errors as above; -EINVAL also when this process and
 * the daemon run as different users, between whom CUDA shares memory but no events: then synchronize
 * the stream before the call, and give no event.
 */
int skvc_register_gpu_event(struct skvc_session *session, const uint8_t ipc_event[64],
			    uint32_t *ret_event);

/* Blocks until no job uses the region or event; then the daemon has forgotten it.  -ESTALE: no such; -ETIME: jobs
 * still use it; -ETIMEDOUT: no answer, and when the connection was given up before, the daemon has not let go of it
 * yet.  After both it is still registered, and the call may be repeated. */
int skvc_unregister(struct skvc_session *session, uint32_t region);

/* ---- jobs ---- */

/*
 * The completion's count may be less than what is there, with a reason: "recompute", or "lease-share" when the leases
 * of this tenant hold as much of the daemon's memory as they may ([limits] lease_share).  What was found can be loaded;
 * the rest is as a miss, until leases are released.
 */
struct skvc_lookup { /* zero-initialise */
	uint32_t ns;
	uint32_t count;		       /* keys, 1..SKVC_BLOCKS_MAX */
	const struct skvc_key *keys;   /* a prefix: keys[i] is the parent of keys[i + 1] */
	const struct skvc_key *parent; /* of keys[0], or NULL */
	/* count * block_tokens ids, or NULL; when given, a hit must match */
	const uint32_t *tokens;
	uint64_t lease_ttl_ns; /* 0: the daemon's default (30 s) */
};

struct skvc_load { /* zero-initialise */
	uint64_t lease;
	uint32_t region; /* where to; its namespace must be the lease's */
	uint32_t first;	 /* first block of the leased prefix to load */
	uint32_t count;
	const uint32_t *blocks; /* block indices in the region, count of them */
	uint32_t skip_tokens;	/* of the first block, leave these leading tokens untouched */
	uint32_t ready_event;	/* GPU: waited for before anything is written; 0: none */
	/* GPU: recorded by the daemon when all that the load writes is in place, before its DONE; 0: none.  A
	 * load that ends early may leave it unrecorded: its DONE says so. */
	uint32_t done_event;
	/* (count + 63) / 64 words, or NULL; bit i = block i is exact.  Zeroed by the call, written when
	 * the job completes; must stay valid until then. */
	uint64_t *ret_bitmap;
	/* NULL, or the running count of leading segments written for all blocks (a hint until the job is
	 * complete), brought up to date by skvc_poll() and skvc_wait(); same lifetime. */
	uint32_t *ret_segments_ready;
};

struct skvc_store { /* zero-initialise */
	uint32_t ns;
	uint32_t region;
	uint32_t count;
	const struct skvc_key *keys;
	const struct skvc_key *parent; /* of keys[0], or NULL at the start of a sequence */
	const uint32_t *tokens;	       /* or NULL */
	const uint32_t *blocks;
	uint32_t ready_event; /* GPU: waited for before anything is read; 0: none */
	uint64_t *ret_bitmap; /* or NULL; bit i = block i was taken (or was there already) */
};

/* Each fills *ret_job and returns 0, or: -EAGAIN (ring, job table or argument area full: take
 * completions, then repeat), -EINVAL, -E2BIG (count, token ids, or more than the argument area holds),
 * -ESTALE (region or event), -EPIPE (daemon gone), -EOWNERDEAD (after fork).  Keys, blocks and tokens are
 * copied by the call.  Events need a region of GPU memory (-EINVAL). */
int skvc_lookup(struct skvc_session *session, const struct skvc_lookup *args, uint64_t *ret_job);
int skvc_load(struct skvc_session *session, const struct skvc_load *args, uint64_t *ret_job);
int skvc_store(struct skvc_session *session, const struct skvc_store *args, uint64_t *ret_job);
int skvc_release(struct skvc_session *session, uint64_t lease, uint64_t *ret_job);
int skvc_touch(struct skvc_session *session, uint32_t ns, const struct skvc_key *keys,
	       uint32_t count, uint64_t *ret_job);
int skvc_drop(struct skvc_session *session, uint32_t ns, const struct skvc_key *keys,
	      uint32_t count, uint64_t *ret_job);
/*
 * Keep blocks from eviction for ttl_ns (0: unpin; limit 24 h).  With the reason "lease-share" the completion's count
 * ends before the key that would be more than this tenant may have pinned; when that is the first, res is -EDQUOT.
 */
int skvc_pin(struct skvc_session *session, uint32_t ns, const struct skvc_key *keys, uint32_t count,
	     uint64_t ttl_ns, uint64_t *ret_job);
int skvc_nop(struct skvc_session *session, uint64_t *ret_job); /* round trip: ping, benchmarks */

enum skvc_event {
	SKVC_EVENT_DONE = 0,	   /* final; a store is COMMITTED: it can be found */
	SKVC_EVENT_SOURCE_FREE = 1 /* store: the source pages may be reused; DONE follows */
};

struct skvc_completion {
	uint64_t job;
	int32_t res;
	uint16_t reason;  /* skvc_reason_name() */
	uint16_t event;	  /* enum skvc_event */
	uint32_t count;	  /* lookup: length of the prefix; others: blocks done */
	uint32_t pending; /* lookup: of these, still on their way from NVMe */
	uint64_t lease;	  /* lookup with count > 0 */
	uint64_t raw_bytes;
	uint64_t stored_bytes;
	uint64_t elapsed_ns; /* inside the daemon */
};

/* Take up to `max` completions without waiting.  Returns how many (>= 0), or -EPIPE once all pending
 * jobs have been completed with -EPIPE.  A job handle is dead after its DONE was taken. */
int skvc_poll(struct skvc_session *session, struct skvc_completion *ret, unsigned max);

/*
 * Wait until all of jobs[] are done.  Completions stay to be taken: by skvc_poll(), or one by one
 * with skvc_result().  Returns 0, -ETIME (not all done; nothing was cancelled), -ESTALE (unknown
 * handle: its DONE was taken before), -EPIPE (the daemon went before all were done; all are done now,
 * some with -EPIPE).  Jobs' own outcomes are in their completions.
 * After it returns 0, no DMA, kernel or thread of the daemon touches the pages of these jobs, in host
 * memory or in the GPU's.
 */
int skvc_wait(struct skvc_session *session, const uint64_t *jobs, unsigned count,
	      uint64_t timeout_ns);

/* Take the DONE of one job: 0, -EINPROGRESS, -ESTALE. */
int skvc_result(struct skvc_session *session, uint64_t job, struct skvc_completion *ret);

/*
 * Cancel a job and wait until it is over.  Returns 0 when it was cancelled or is done (take its
 * completion: -ECANCELED or its result), -ESTALE (unknown handle), -EPIPE, -ETIME.  After it returned 0,
 * nothing of the daemon touches the job's pages.  -ETIME: it is not over within timeout_ns (the daemon is
 * stopped, say), and may touch them still; call again, or wait for it.
 */
int skvc_abort(struct skvc_session *session, uint64_t job);

/* Jobs submitted and not yet taken; no call into the daemon. */
unsigned skvc_pending(const struct skvc_session *session);

/* A descriptor to poll for reading in an engine's event loop: readable when completions have come or the
 * daemon is gone.  Never read it; it belongs to the session and stays the same over skvc_reconnect().
 * Call skvc_arm() before sleeping on it: 1 = armed; 0 = take completions first; -EPIPE as skvc_poll(). */
int skvc_event_fd(const struct skvc_session *session);
int skvc_arm(struct skvc_session *session);

struct skvc_lease_status {
	uint32_t blocks_hit;   /* length of the leased prefix */
	uint32_t blocks_ready; /* leading blocks that a load need not wait for (lost ones too) */
	uint32_t blocks_lost;  /* of these, will be reported as misses by a load */
	uint64_t deadline_ns;  /* CLOCK_MONOTONIC */
};

/* Read a lease's progress from shared memory, in the session that looked up (another session of the
 * tenant may load from the lease, but not watch it); no call into the daemon, so it is skvc_poll() that
 * notices a dead one.  0, -ESTALE (the lease is over), -EPIPE. */
int skvc_lease_poll(const struct skvc_session *session, uint64_t lease,
		    struct skvc_lease_status *ret);

/*
 * ---- the simple calls: one block in the packed form, any memory, synchronous ----
 *
 * -ETIME: not done within timeout_ns.  The session goes on, and the caller's memory is his own; a put may still take
 * place.  The first call of a namespace makes an arena, and may end with -ETIMEDOUT as skvc_arena_new() does.
 */

/* 0, -EEXIST (there already), -EAGAIN, -EDQUOT, -ETIME, -EPIPE, ... ; bytes must be one block's. */
int skvc_put(struct skvc_session *session, uint32_t ns, const struct skvc_key *key,
	     const void *data, size_t bytes);
/* 0: data is byte-exact; -ENOENT: a miss; data is unspecified on any error. */
int skvc_get(struct skvc_session *session, uint32_t ns, const struct skvc_key *key, void *data,
	     size_t bytes);

#ifdef __cplusplus
}
#endif

#endif
