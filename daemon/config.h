/* SPDX-License-Identifier: Apache-2.0 */
/*
 * config.h - skvcd.conf: every key, its default and its range, in one table (config.c).  Read at start-up by
 * the control thread; afterwards only a reload changes it, and only keys that are CONFIG_LIVE: in the control
 * thread's copy, and by mail in the lane's.
 */
#ifndef SKVCD_DAEMON_CONFIG_H
#define SKVCD_DAEMON_CONFIG_H

#include <limits.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/types.h>

#define CONFIG_TENANTS_MAX 64u
#define CONFIG_SOCKET_BYTES 108u
#define CONFIG_FITS_MAX 4u
#define CONFIG_VALUE_BYTES 256u
#define CONFIG_ALLOWED_BYTES 128u /* room for the longest range in words */

/* The first ones as enum codec_speculator has them. */
enum config_speculator {
	CONFIG_SPECULATOR_RAW,
	CONFIG_SPECULATOR_GENERIC,
	CONFIG_SPECULATOR_CHANNEL,
	CONFIG_SPECULATOR_LAYER,
	CONFIG_SPECULATOR_MODEL, /* `channel` at the store, `model` later, where there is one */
	CONFIG_SPECULATOR_AUTO,	 /* `channel` at the store, `layer` later, when there is time */
	CONFIG_SPECULATOR_COUNT
};

#define CONFIG_PREVIOUS_AUTO 7u

struct config_tenant {
	uint32_t uid_first; /* this range of uids is one tenant */
	uint32_t uid_last;
	uint64_t quota_bytes; /* compressed; 0: no limit of its own */
	char name[32];
};

struct config {
	/* [daemon] */
	char socket[CONFIG_SOCKET_BYTES];     /* /run/skvcd/skvcd.sock */
	char bus_socket[CONFIG_SOCKET_BYTES]; /* /run/skvcd/bus; empty: no peer-to-peer bus */
	char state_dir[PATH_MAX];	      /* /var/lib/skvcd: secret, profiles, spill file */
	uint32_t socket_mode;		      /* 0660 */
	uint32_t sessions_max;	 /* 1..256 (three letters each fit a mailbox), default 64 */
	uint32_t namespaces_max; /* 1..1024, default 64 */
	uint64_t spin_ns;	 /* lane busy-polls this long before it sleeps; default 50 us */
	uint32_t log_debug;	 /* 1: as with --debug */
	uint32_t cpu_workers;	 /* codec threads; 0: cores - 1, at least 1, at most 16 */
	/* [host] */
	uint64_t pool_bytes;	 /* 1 GiB; >= 16 MiB */
	int32_t numa_node;	 /* -1: no preference */
	uint32_t lock_memory;	 /* 1: mlock the pool (refuse to start when it fails); 0: do not */
	uint32_t spill_percent;	 /* write-behind to NVMe starts above this fill; 60 */
	uint32_t full_percent;	 /* stores are refused above this fill; 97 */
	uint32_t accept_percent; /* ... until the fill is below this again; 92 */
	uint32_t host_persist; /* the pool outlives a restart, where somebody keeps its memfd; 1 */
	uint64_t arena_session_bytes; /* sum of one session's arenas; 16 GiB */
	uint64_t arena_total_bytes;   /* of all sessions; 64 GiB */
	/* [nvme] */
	char nvme_path
		[PATH_MAX];  /* files to preallocate: config_nvme_devices(); empty: no NVMe tier */
	uint64_t nvme_bytes; /* its size; multiple of segment_bytes; >= 4 segments */
	uint64_t nvme_segment_bytes;	/* power of two, 1 MiB..256 MiB; 64 MiB */
	uint32_t nvme_queue_depth;	/* 1..1024; 64 */
	uint64_t nvme_deadline_ns;	/* per I/O; 5 s */
	uint32_t nvme_copy_percent;	/* of what is stored, that may be copied to be kept; 50 */
	uint64_t nvme_read_ahead_bytes; /* behind what was asked for; 0: none; 4 MiB */
	uint32_t nvme_iopoll;		/* completions are polled for; 0 */
	uint32_t nvme_sqpoll;		/* a kernel thread takes what is queued; 0 */
	uint32_t nvme_persist;		/* what it holds is found again at the next start; 1 */
	uint64_t nvme_retry_ns;		/* an ailing tier is tried again after this; 5 s */
	/* [gpu] */
	char gpu_device[64];	    /* auto, none, sim, an ordinal or a UUID */
	char gpu_library[PATH_MAX]; /* shared object of the CUDA device; empty: beside the daemon */
	uint64_t gpu_pool_bytes;    /* GPU memory for compressed blocks; 0: none */
	uint64_t gpu_staging_bytes; /* GPU memory for work in flight; 128 MiB */
	uint32_t gpu_share_percent; /* share of the GPU's time for all coding; 100 */
	uint32_t gpu_background_percent; /* share of the GPU's time for work that may wait; 10 */
	/* [codec] */
	uint32_t speculator; /* enum config_speculator */
	uint32_t plan;	     /* 0: auto codes again with layer wherever it can */
	uint32_t verify;     /* 1: decode every block again before it counts as stored */
	uint64_t fit_tokens
		[CONFIG_FITS_MAX]; /* a profile is fitted at these token counts; 0-terminated */
	/* [profile] */
	char profile_directory
		[PATH_MAX]; /* of profiles that came as files; empty: <state_dir>/profiles */
	uint64_t
		profile_sample_bytes; /* raw blocks kept of one namespace to fit `layer` on; 1 GiB */
	uint64_t profile_samples_bytes; /* of all namespaces together; 4 GiB */
	uint32_t profile_previous;	/* layers looked back: 0..6, or CONFIG_PREVIOUS_AUTO */
	uint64_t profile_bytes_max;	/* of one profile; 512 MiB */
	uint32_t profile_priority;	/* enum device_priority */
	uint32_t drift_percent;		/* worse than expected by this: a new profile; 0: never */
	uint32_t drift_blocks;		/* ... in the mean of so many blocks */
	/* [model] */
	uint32_t model_sequences;    /* prefixes kept ready to go on from; 4 */
	uint32_t model_tokens_max;   /* longer sequences are not coded after their prefix; 32768 */
	uint64_t model_idle_ns;	     /* an unused prefix is kept so long; 10 s */
	uint32_t model_fit_tokens;   /* of stored blocks, that parameters are fitted on; 4096 */
	uint32_t model_draft_tokens; /* the same of a draft; 20000 */
	uint32_t model_gpu;	     /* models run on the GPU, if there is one; 1 */
	uint32_t model_gpu_tokens;   /* that go through a model there at a time; 1024 */
	/* [limits] */
	uint32_t blocks_max;	    /* index size; 0: one per 16 KiB of pool + NVMe, 4096..16 M */
	uint32_t sessions_per_user; /* 0: half of sessions_max; config_share() */
	uint64_t arenas_per_user; /* bytes; 0: half of arena_total_bytes, or arena_session_bytes */
	uint32_t namespaces_per_tenant; /* 0: half of namespaces_max; config_share() */
	uint32_t leases_max;		/* per session, 1..1024; 1024 */
	uint32_t lease_share_percent;	/* of the pool, that one tenant's may hold; 50 */
	uint64_t lease_ttl_ns;		/* default of a lookup; 30 s */
	uint64_t lease_ttl_max_ns;	/* 300 s */
	uint64_t store_wait_ns;		/* a store waits this long for room, then is refused; 2 s */
	uint64_t event_wait_ns; /* a job whose ready event is not seen by then is given up; 30 s */
	uint64_t gpu_wait_ns;	/* a GPU that ends nothing for so long hangs; 60 s */
	uint64_t quota_bytes;	/* of a tenant without a section; 0: none */
	uint32_t admission;	/* what is hardly ever asked for again is refused; 0 */
	uint32_t quota_borrow;	/* what others leave of theirs may be used; 1 */
	/* [metrics] */
	char metrics_listen[64]; /* address:port of GET /metrics; empty: nowhere */
	/* [tenant NAME] */
	uint32_t tenants_count;
	struct config_tenant tenants[CONFIG_TENANTS_MAX];
	/* [fault]: for tests of the daemon and of engines */
	char fault_device[128]; /* gpu/device.h fault spec */
	char fault_nvme[128];	/* daemon/uring.h fault spec */
	char fault_gpu[128];	/* gpu/device.h fault spec, for the GPU */
};

void config_default(struct config *ret);

/* What one of many may have of `all`: so much as is said, or, with 0, no more than is left to the others. */
static inline uint32_t config_share(uint32_t said, uint32_t all)
{
	if (said)
		return said;
	return all > 1 ? all / 2 : 1;
}

/*
 * Read a file over the defaults.  0, or -EINVAL / -errno with one line in err: file, line, key, what is
 * wrong and the allowed range.  Sizes take K/M/G/T (binary), times ns/us/ms/s.  Unknown sections and
 * keys are errors.
 */
int config_load(const char *path, struct config *ret, char *err, size_t err_bytes);

/* The same from memory; `name` stands for the file in error lines. */
int config_load_bytes(const char *name, const char *bytes, size_t bytes_count, struct config *ret,
		      char *err, size_t err_bytes);
/* One override, "section.key=value"; later ones win.  0 or -EINVAL. */
int config_set(struct config *c, const char *assignment, char *err, size_t err_bytes);

/* Cross-checks that no single key can see (accept < full, nvme size a multiple of segments, ...). */
int config_check(const struct config *c, char *err, size_t err_bytes);

/* ---- the table, for the help and for tests ---- */

enum config_type {
	CONFIG_SIZE,
	CONFIG_TIME,
	CONFIG_COUNT,
	CONFIG_INT,
	CONFIG_MODE,
	CONFIG_CHOICE,
	CONFIG_COUNTS,
	CONFIG_TEXT
};

#define CONFIG_OR_ZERO 1u /* 0 is allowed beside min..max */
#define CONFIG_LIVE 2u	  /* a reload changes it; the others need a restart */

struct config_key {
	const char *section;
	const char *key;
	enum config_type type;
	size_t off; /* of the field in struct config */
	size_t field_bytes;
	int64_t min, max; /* inclusive; of texts: their length in bytes */
	unsigned flags;
	const char *const *choices; /* NULL-terminated, by value; CHOICE only */
	const char *value;	    /* the default, as one would write it */
	const char *text;	    /* what it means, one line */
};

/* [nvme] path: one or more, and what is said of their sizes. */
#define CONFIG_NVME_DEVICES_MAX 8u
struct config_nvme_device {
	char path[PATH_MAX];
	uint64_t bytes;
};
int config_nvme_devices(
	const struct config *c,
	struct config_nvme_device ret[CONFIG_NVME_DEVICES_MAX]); /* how many; -EINVAL */
uint64_t config_nvme_bytes(const struct config *c);		 /* of all */

#define CONFIG_KEYS_MAX 128u

const struct config_key *config_key_at(size_t index);		      /* NULL behind the last one */
const struct config_key *config_key_next(const struct config_key *k); /* NULL behind the last one */
size_t config_key_index(const struct config_key *k);
/* Parse and set one field.  NULL, or what is wrong with the value ("out of range"); c is then untouched. */
const char *config_key_set(struct config *c, const struct config_key *k, const char *value);
/* What may be written there, in words; returns the length.  buf_bytes >= CONFIG_ALLOWED_BYTES. */
size_t config_key_allowed(const struct config_key *k, char *buf, size_t buf_bytes);
/* As one would write it. */
void config_key_value(const struct config *c, const struct config_key *k, char *buf,
		      size_t buf_bytes);
/* What a reload may change, from one to the other; tenants are not touched. */
void config_copy_live(struct config *to, const struct config *from);
int config_parse_u64(const char *s, const char **ret_end, uint64_t *ret); /* -EINVAL, -ERANGE */
int config_parse_size(const char *s, uint64_t *ret);			  /* with K, M, G or T */
/* "127.0.0.1:9472" or "[::1]:9472": names are not resolved.  0 or -EINVAL. */
int config_parse_address(const char *s, struct sockaddr_storage *ret, socklen_t *ret_len);
const char *config_speculator_name(uint32_t speculator);
void config_print_help(FILE *out); /* a commented skvcd.conf with every key and default */

#endif
