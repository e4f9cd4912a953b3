/* SPDX-License-Identifier: Apache-2.0 */
/*
 * stats.h - every counter of the daemon, in one table: name, unit, meaning.  The lane is the only
 * writer (relaxed stores, no read-modify-write); the control thread reads whenever it likes and never
 * makes the lane wait.  `skvcctl stats`, the metrics and the manual are made from this table.
 */
#ifndef SKVCD_DAEMON_STATS_H
#define SKVCD_DAEMON_STATS_H

#include <stdatomic.h>
#include <stdint.h>

#include "ipc/abi.h"

/* kind: C counter (only grows), G gauge */
#define STATS_TABLE(X)                                                                             \
	X(C, OPS, "ops", "operations", "ring entries taken")                                       \
	X(C, OPS_REFUSED, "ops_refused", "operations", "ring entries answered with an error")      \
	X(C, LOOKUPS, "lookups", "operations", "lookups answered")                                 \
	X(C, LOOKUP_BLOCKS, "lookup_blocks", "blocks", "keys asked for")                           \
	X(C, HIT_BLOCKS_HOST, "hit_blocks_host", "blocks", "keys found in host memory")            \
	X(C, HIT_BLOCKS_GPU, "hit_blocks_gpu", "blocks", "keys found in the GPU pool")             \
	X(C, HIT_BLOCKS_NVME, "hit_blocks_nvme", "blocks", "keys found on NVMe only")              \
	X(C, STORE_BLOCKS, "store_blocks", "blocks", "blocks committed")                           \
	X(C, STORE_DUPLICATE_BLOCKS, "store_duplicate_blocks", "blocks",                           \
	  "blocks that were there already")                                                        \
	X(C, STORE_REFUSED_BLOCKS, "store_refused_blocks", "blocks", "blocks not taken")           \
	X(C, STORE_RAW_BYTES, "store_raw_bytes", "bytes", "raw bytes of committed blocks")         \
	X(C, STORE_CODED_BYTES, "store_coded_bytes", "bytes",                                      \
	  "compressed bytes of committed blocks")                                                  \
	X(C, LOAD_BLOCKS, "load_blocks", "blocks", "blocks restored byte-exact")                   \
	X(C, LOAD_FAILED_BLOCKS, "load_failed_blocks", "blocks",                                   \
	  "leased blocks that could not be restored")                                              \
	X(C, LOAD_RAW_BYTES, "load_raw_bytes", "bytes", "raw bytes restored")                      \
	X(C, CHECKSUM_FAILURES, "checksum_failures", "blocks",                                     \
	  "blocks quarantined: stored bytes were wrong")                                           \
	X(C, CHUNKS_RAW, "chunks_raw", "chunks",                                                   \
	  "chunks kept raw: did not shrink or did not verify")                                     \
	X(C, ESCAPES, "escapes", "scalars", "scalars outside their token window")                  \
	X(C, ENCODE_NS, "encode_ns", "ns", "device time spent encoding")                           \
	X(C, DECODE_NS, "decode_ns", "ns", "device time spent decoding")                           \
	X(C, GPU_ENCODE_NS, "gpu_encode_ns", "ns", "GPU time spent encoding")                      \
	X(C, GPU_DECODE_NS, "gpu_decode_ns", "ns", "GPU time spent decoding")                      \
	X(C, GPU_DEMOTED_BLOCKS, "gpu_demoted_blocks", "blocks",                                   \
	  "blocks moved from the GPU pool to the host pool")                                       \
	X(C, GPU_DEMOTED_BYTES, "gpu_demoted_bytes", "bytes", "compressed bytes moved that way")   \
	X(C, GPU_LOST_BLOCKS, "gpu_lost_blocks", "blocks",                                         \
	  "blocks of the GPU pool that went with the GPU")                                         \
	X(C, GPU_FAILED, "gpu_failed", "tasks", "tasks on the GPU that failed")                    \
	X(C, EVICTED_BLOCKS, "evicted_blocks", "blocks", "blocks dropped for room")                \
	X(C, QUOTA_RETURNED_BLOCKS, "quota_returned_blocks", "blocks",                             \
	  "of these, of tenants above their quota that others wanted room of")                     \
	X(C, DROPPED_BLOCKS, "dropped_blocks", "blocks",                                           \
	  "blocks evicted instead of written to NVMe: sooner computed, or longer than a segment")  \
	X(C, PROFILES_FITTED, "profiles_fitted", "profiles", "profiles frozen")                    \
	X(C, PROFILES_LAYER, "profiles_layer", "profiles",                                         \
	  "profiles frozen with maps from layer to layer")                                         \
	X(C, PROFILES_REJECTED, "profiles_rejected", "profiles",                                   \
	  "profiles that were fitted and no better than the old one")                              \
	X(C, PROFILES_FREED, "profiles_freed", "profiles",                                         \
	  "profiles that no block needs any more")                                                 \
	X(C, PROFILE_DRIFTS, "profile_drifts", "profiles",                                         \
	  "profiles that blocks had become larger with than promised")                             \
	X(C, LAYER_BLOCKS, "layer_blocks", "blocks", "blocks coded with layer")                    \
	X(C, MODEL_BLOCKS, "model_blocks", "blocks", "blocks coded with model")                    \
	X(C, SEQUENCE_STEPS, "sequence_steps", "blocks",                                           \
	  "blocks decoded because one behind them needs its prefix")                               \
	X(C, SEQUENCE_NS, "sequence_ns", "ns", "device time spent decoding prefixes")              \
	X(C, RECODED_BLOCKS, "recoded_blocks", "blocks",                                           \
	  "blocks coded again with a stronger speculator")                                         \
	X(C, RECODE_SAVED_BYTES, "recode_saved_bytes", "bytes", "what coding again saved")         \
	X(C, RECODE_KEPT_BLOCKS, "recode_kept_blocks", "blocks",                                   \
	  "blocks that coding again would not have made smaller")                                  \
	X(C, RECODE_STOPPED, "recode_stopped", "blocks",                                           \
	  "blocks not coded again after all, for work in the foreground")                          \
	X(C, RECODE_FAILED, "recode_failed", "blocks",                                             \
	  "blocks that, coded again, did not come back exact, and stayed as they were")            \
	X(C, RECODE_NS, "recode_ns", "ns", "device time spent coding again")                       \
	X(C, SPILL_BLOCKS, "spill_blocks", "blocks", "blocks written to NVMe")                     \
	X(C, SPILL_BYTES, "spill_bytes", "bytes", "bytes written to NVMe")                         \
	X(C, FETCH_BLOCKS, "fetch_blocks", "blocks", "blocks read from NVMe")                      \
	X(C, FETCH_BYTES, "fetch_bytes", "bytes", "bytes read from NVMe")                          \
	X(C, NVME_READS, "nvme_reads", "operations",                                               \
	  "reads of records from NVMe: one may serve several blocks")                              \
	X(C, NVME_JOINED_BLOCKS, "nvme_joined_blocks", "blocks",                                   \
	  "blocks read from NVMe together with others")                                            \
	X(C, NVME_PARTED_READS, "nvme_parted_reads", "operations",                                 \
	  "of these reads, those that failed: each block was read again by itself")                \
	X(C, READ_AHEAD_BLOCKS, "read_ahead_blocks", "blocks",                                     \
	  "blocks read from NVMe before anybody asked for them")                                   \
	X(C, READ_AHEAD_USED_BLOCKS, "read_ahead_used_blocks", "blocks",                           \
	  "of these, asked for while they were in host memory")                                    \
	X(C, READ_AHEAD_WASTED_BLOCKS, "read_ahead_wasted_blocks", "blocks",                       \
	  "of these, gone from host memory before anybody asked for them")                         \
	X(C, NVME_ERRORS, "nvme_errors", "operations",                                             \
	  "NVMe reads and writes that failed or timed out")                                        \
	X(C, NVME_RECLAIMED_SEGMENTS, "nvme_reclaimed_segments", "segments",                       \
	  "log segments reused")                                                                   \
	X(C, NVME_WRITTEN_BYTES, "nvme_written_bytes", "bytes",                                    \
	  "bytes written to NVMe for any reason: records, their index and what was forgotten")     \
	X(C, NVME_STORED_BYTES, "nvme_stored_bytes", "bytes", "of these, first copies of blocks")  \
	X(C, NVME_EVICTED_BYTES, "nvme_evicted_bytes", "bytes",                                    \
	  "live bytes given up with the segments they lay in")                                     \
	X(C, NVME_COPIED_BLOCKS, "nvme_copied_blocks", "blocks",                                   \
	  "blocks copied out of segments that were to be used again")                              \
	X(C, NVME_COPIED_BYTES, "nvme_copied_bytes", "bytes", "bytes written for these copies")    \
	X(C, NVME_NOTES_LOST, "nvme_notes_lost", "segments",                                       \
	  "segments reused with notes of drops that a crash would need")                           \
	X(C, NVME_CHECKPOINTS, "nvme_checkpoints", "checkpoints",                                  \
	  "times the index was written to NVMe")                                                   \
	X(C, NVME_RESTORED_BLOCKS, "nvme_restored_blocks", "blocks",                               \
	  "blocks found on NVMe at the start")                                                     \
	X(C, NVME_REFUSED_BLOCKS, "nvme_refused_blocks", "blocks",                                 \
	  "records found there that were damaged, or not known what for")                          \
	X(C, HOST_RESTORED_BLOCKS, "host_restored_blocks", "blocks",                               \
	  "blocks found in host memory at the start")                                              \
	X(C, HOST_REFUSED_BLOCKS, "host_refused_blocks", "blocks",                                 \
	  "blocks of the last daemon's index of host memory that were not taken over")             \
	X(C, HOST_RESTORE_NS, "host_restore_ns", "ns", "time that finding them took")              \
	X(C, SESSIONS_OPENED, "sessions_opened", "sessions", "clients that connected")             \
	X(C, SESSIONS_FAILED, "sessions_failed", "sessions",                                       \
	  "sessions ended for what the client did")                                                \
	X(C, LEASES_GRANTED, "leases_granted", "leases", "leases given")                           \
	X(C, LEASES_EXPIRED, "leases_expired", "leases", "leases that ran into their deadline")    \
	X(C, WAKEUPS, "wakeups", "wake-ups", "times the lane slept and was woken")                 \
	X(G, SESSIONS, "sessions", "sessions", "clients connected")                                \
	X(G, LEASES, "leases", "leases", "leases held")                                            \
	X(G, JOBS, "jobs", "operations", "operations in flight")                                   \
	X(G, BLOCKS, "blocks", "blocks", "blocks in the index")                                    \
	X(G, BLOCKS_HOST, "blocks_host", "blocks", "blocks in host memory")                        \
	X(G, BLOCKS_NVME, "blocks_nvme", "blocks", "blocks on NVMe")                               \
	X(G, INDEX_BLOCKS_MAX, "index_blocks_max", "blocks", "blocks the index can hold")          \
	X(G, RAW_BYTES, "raw_bytes", "bytes", "raw bytes of all blocks in the index")              \
	X(G, CODED_BYTES, "coded_bytes", "bytes", "compressed bytes of all blocks in the index")   \
	X(G, POOL_BYTES, "pool_bytes", "bytes", "size of the host pool")                           \
	X(G, POOL_USED_BYTES, "pool_used_bytes", "bytes", "bytes of the pool that records fill")   \
	X(G, POOL_SLOT_BYTES, "pool_slot_bytes", "bytes",                                          \
	  "bytes of the pool's slots that have a record")                                          \
	X(G, POOL_SLAB_BYTES, "pool_slab_bytes", "bytes",                                          \
	  "bytes of the pool's slabs that have slots in use")                                      \
	X(G, GPU_BLOCKS, "gpu_blocks", "blocks", "blocks in the GPU pool")                         \
	X(G, GPU_POOL_BYTES, "gpu_pool_bytes", "bytes", "size of the GPU pool")                    \
	X(G, GPU_USED_BYTES, "gpu_used_bytes", "bytes", "bytes of the GPU pool that records fill") \
	X(G, GPU_HEALTH, "gpu_health", "state", "0 no GPU, 1 in service, 2 failed")                \
	X(G, PROFILES, "profiles", "profiles", "profiles that are in use")                         \
	X(G, PROFILE_BYTES, "profile_bytes", "bytes", "size of profiles in use")                   \
	X(G, SEQUENCES, "sequences", "sequences", "prefixes that are kept ready for model")        \
	X(G, SEQUENCES_GPU, "sequences_gpu", "sequences", "of these, in GPU memory")               \
	X(G, SEQUENCE_BYTES, "sequence_bytes", "bytes", "size of prefixes that are kept")          \
	X(G, SAMPLE_BYTES, "sample_bytes", "bytes",                                                \
	  "memory set aside for samples of new namespaces")                                        \
	X(G, NVME_BYTES, "nvme_bytes", "bytes", "size of the NVMe log")                            \
	X(G, NVME_LIVE_BYTES, "nvme_live_bytes", "bytes", "bytes of live records on NVMe")         \
	X(G, NVME_WRITE_AMPLIFICATION, "nvme_write_amplification", "percent",                      \
	  "all bytes written to NVMe since the start, of those written for blocks' first copies")  \
	X(G, NVME_HEALTH, "nvme_health", "state",                                                  \
	  "0 no tier, 1 in service, 2 out of service, 3 some devices out of service")              \
	X(G, NVME_INFLIGHT, "nvme_inflight", "operations", "reads and writes in flight")           \
	X(G, DEVICE_INFLIGHT, "device_inflight", "tasks", "tasks on the compute devices")

enum stats_id {
#define STATS_ENUM(kind, id, name, unit, text) STAT_##id,
	STATS_TABLE(STATS_ENUM)
#undef STATS_ENUM
		STAT_COUNT
};

/* Durations: name, meaning. */
#define STATS_HIST_TABLE(X)                                                             \
	X(LOOKUP, "lookup", "lookups, from the ring entry to its completion")           \
	X(LOAD, "load", "loads, from the ring entry to the last block")                 \
	X(STORE_FREE, "store_free", "stores, until the engine may have its pages back") \
	X(STORE, "store", "stores, until the blocks are committed")                     \
	X(NVME_READ, "nvme_read", "reads from NVMe")                                    \
	X(NVME_WRITE, "nvme_write", "writes to NVMe")

enum stats_hist_id {
#define STATS_HIST_ENUM(id, name, text) STATS_HIST_##id,
	STATS_HIST_TABLE(STATS_HIST_ENUM)
#undef STATS_HIST_ENUM
		STATS_HIST_COUNT
};

#define STATS_BUCKETS 160u /* 4 per octave from 1 ns: up to 2^40 ns */

struct stats {
	_Atomic uint64_t value[STAT_COUNT];
	_Atomic uint64_t reason[SKVC_ABI_REASON_COUNT];
	_Atomic uint64_t hist[STATS_HIST_COUNT][STATS_BUCKETS];
	_Atomic uint64_t hist_sum_ns[STATS_HIST_COUNT];
};

struct stats_info {
	const char *name;
	const char *unit;
	const char *text;
	char kind; /* 'C' or 'G' */
};

extern const struct stats_info stats_info[STAT_COUNT];
extern const char *const stats_hist_name[STATS_HIST_COUNT];
extern const char *const stats_hist_text[STATS_HIST_COUNT];

/* Single writer: a plain load and a plain store, both relaxed so that readers see whole words. */
static inline void stats_add(struct stats *s, enum stats_id id, uint64_t n)
{
	uint64_t v = atomic_load_explicit(&s->value[id], memory_order_relaxed);

	atomic_store_explicit(&s->value[id], v + n, memory_order_relaxed);
}

static inline void stats_sub(struct stats *s, enum stats_id id, uint64_t n)
{
	stats_add(s, id, (uint64_t)0 - n);
}

static inline void stats_set(struct stats *s, enum stats_id id, uint64_t n)
{
	atomic_store_explicit(&s->value[id], n, memory_order_relaxed);
}

static inline uint64_t stats_get(const struct stats *s, enum stats_id id)
{
	return atomic_load_explicit(&s->value[id], memory_order_relaxed);
}

const char *stats_reason_text(uint16_t reason);	     /* "no room in the host pool at this moment" */
const char *stats_reason_word(uint16_t reason);	     /* "pool-full"; "unknown" */
void stats_reason(struct stats *s, uint16_t reason); /* count one refusal by cause */
void stats_record_ns(struct stats *s, enum stats_hist_id hist, uint64_t ns);
uint64_t stats_percentile_ns(const struct stats *s, enum stats_hist_id hist,
			     double p); /* 0: empty */
uint64_t stats_hist_samples(const struct stats *s, enum stats_hist_id hist);
/* A copy; buckets below 4 * n hold what took less than 2^n ns. */
void stats_hist_copy(const struct stats *s, enum stats_hist_id hist,
		     uint64_t ret_count[STATS_BUCKETS]);

#endif
