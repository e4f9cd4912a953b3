/* SPDX-License-Identifier: Apache-2.0 */
/*
 * config_table.c - every key of skvcd.conf: where it lies, what it may hold, its default, what it means.
 *
 * Start-up only, control thread.  The same table gives the defaults (they are parsed like any value),
 * the ranges in error lines, `skvcd --help-config`, and the manual's check (tests/unit/test_config.c).
 * Knows no file and no line.
 */
#include "daemon/config.h"

#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <stdbool.h>
#include <string.h>

#include "gpu/codec/codec.h"
#include "ipc/abi.h"

#define KIB 1024ull
#define MIB (1024ull * KIB)
#define GIB (1024ull * MIB)
#define TIB (1024ull * GIB)
#define USEC 1000ull
#define MSEC (1000ull * USEC)
#define SEC (1000ull * MSEC)

#define FIELD(f) offsetof(struct config, f), sizeof(((struct config *)0)->f)

static const char *const bool_names[] = { "no", "yes", NULL };
static const char *const speculator_names[CONFIG_SPECULATOR_COUNT + 1] = {
	[CONFIG_SPECULATOR_RAW] = "raw",	 [CONFIG_SPECULATOR_GENERIC] = "generic",
	[CONFIG_SPECULATOR_CHANNEL] = "channel", [CONFIG_SPECULATOR_LAYER] = "layer",
	[CONFIG_SPECULATOR_MODEL] = "model",	 [CONFIG_SPECULATOR_AUTO] = "auto",
};
static const char *const log_names[] = { "info", "debug", NULL };
static const char *const priority_names[] = { "idle", "low", "normal", NULL };
static const char *const previous_names[CONFIG_PREVIOUS_AUTO + 2] = {
	"0", "1", "2", "3", "4", "5", "6", [CONFIG_PREVIOUS_AUTO] = "auto"
};

_Static_assert((int)CONFIG_SPECULATOR_RAW == CODEC_SPEC_RAW &&
		       (int)CONFIG_SPECULATOR_GENERIC == CODEC_SPEC_GENERIC &&
		       (int)CONFIG_SPECULATOR_CHANNEL == CODEC_SPEC_CHANNEL &&
		       (int)CONFIG_SPECULATOR_LAYER == CODEC_SPEC_LAYER &&
		       (int)CONFIG_SPECULATOR_MODEL == CODEC_SPEC_MODEL,
	       "one is used as the other");

/* In the order of the manual.  Sizes and times are given with their unit; ranges are inclusive. */
static const struct config_key config_keys[] = {
	{ "daemon", "socket", CONFIG_TEXT, FIELD(socket), 1, CONFIG_SOCKET_BYTES - 1, 0, NULL,
	  "/run/skvcd/skvcd.sock", "Unix socket where clients connect" },
	{ "daemon", "bus_socket", CONFIG_TEXT, FIELD(bus_socket), 0, CONFIG_SOCKET_BYTES - 1, 0,
	  NULL, "/run/skvcd/bus",
	  "Unix socket of the D-Bus interface that skvcctl uses; empty: none" },
	{ "daemon", "state_dir", CONFIG_TEXT, FIELD(state_dir), 1, PATH_MAX - 1, 0, NULL,
	  "/var/lib/skvcd", "directory of the daemon's secret; made when missing" },
	{ "daemon", "socket_mode", CONFIG_MODE, FIELD(socket_mode), 0600, 0777, 0, NULL, "0660",
	  "permissions of both sockets, octal" },
	{ "daemon", "sessions_max", CONFIG_COUNT, FIELD(sessions_max), 1, 256, 0, NULL, "64",
	  "clients connected at a time" },
	{ "daemon", "namespaces_max", CONFIG_COUNT, FIELD(namespaces_max), 1, 1024, 0, NULL, "64",
	  "namespaces of all tenants, until the daemon ends" },
	{ "daemon", "spin", CONFIG_TIME, FIELD(spin_ns), 0, 10 * MSEC, 0, NULL, "50us",
	  "how long the data path polls before it sleeps" },
	{ "daemon", "log", CONFIG_CHOICE, FIELD(log_debug), 0, 1, CONFIG_LIVE, log_names, "info",
	  "what is worth a line in the log; debug: every refused request, too" },
	{ "daemon", "cpu_workers", CONFIG_COUNT, FIELD(cpu_workers), 0, 64, 0, NULL, "0",
	  "codec threads; 0: one less than there are cores, 1 to 16" },

	{ "host", "pool", CONFIG_SIZE, FIELD(pool_bytes), 16 * MIB, 16 * TIB, 0, NULL, "1G",
	  "host memory for compressed blocks" },
	{ "host", "numa_node", CONFIG_INT, FIELD(numa_node), -1, 1023, 0, NULL, "-1",
	  "NUMA node of the pool and of arenas; -1: no preference" },
	{ "host", "lock_memory", CONFIG_CHOICE, FIELD(lock_memory), 0, 1, 0, bool_names, "yes",
	  "lock pool and arenas into memory; needs LimitMEMLOCK" },
	{ "host", "spill_percent", CONFIG_COUNT, FIELD(spill_percent), 1, 99, CONFIG_LIVE, NULL,
	  "60", "blocks are written to NVMe ahead of need above this fill of the pool" },
	{ "host", "full_percent", CONFIG_COUNT, FIELD(full_percent), 2, 100, CONFIG_LIVE, NULL,
	  "97", "stores wait, then are refused, above this fill of the pool" },
	{ "host", "accept_percent", CONFIG_COUNT, FIELD(accept_percent), 1, 99, CONFIG_LIVE, NULL,
	  "92", "and are taken again below this one" },
	{ "host", "persist", CONFIG_CHOICE, FIELD(host_persist), 0, 1, 0, bool_names, "yes",
	  "what the pool holds is found again after a restart in order; needs systemd's fd store" },
	{ "host", "arena_session", CONFIG_SIZE, FIELD(arena_session_bytes), 0, 64 * TIB, 0, NULL,
	  "16G", "arenas of one session together" },
	{ "host", "arena_total", CONFIG_SIZE, FIELD(arena_total_bytes), 0, 64 * TIB, 0, NULL, "64G",
	  "arenas of all sessions together" },

	{ "nvme", "path", CONFIG_TEXT, FIELD(nvme_path), 0, PATH_MAX - 1, 0, NULL, "",
	  "file of the NVMe tier, allocated at start, or several: A, B 500G; empty: no such tier" },
	{ "nvme", "size", CONFIG_SIZE, FIELD(nvme_bytes), 4 * MIB, 1024 * TIB, 0, NULL, "16G",
	  "size of each that has none of its own: a multiple of segment, at least 4 of them" },
	{ "nvme", "segment", CONFIG_SIZE, FIELD(nvme_segment_bytes), 1 * MIB, 256 * MIB, 0, NULL,
	  "64M", "unit of reuse: a power of two" },
	{ "nvme", "queue_depth", CONFIG_COUNT, FIELD(nvme_queue_depth), 1, 1024, 0, NULL, "64",
	  "reads and writes in flight" },
	{ "nvme", "deadline", CONFIG_TIME, FIELD(nvme_deadline_ns), 1 * MSEC, 600 * SEC, 0, NULL,
	  "5s", "a read or write that takes longer has failed" },
	{ "nvme", "retry", CONFIG_TIME, FIELD(nvme_retry_ns), 1 * MSEC, 3600 * SEC, 0, NULL, "5s",
	  "an ailing tier is tried again after this" },
	{ "nvme", "copy_percent", CONFIG_COUNT, FIELD(nvme_copy_percent), 0, 400, 0, NULL, "50",
	  "of what is written, so much may be written again to keep what is used" },
	{ "nvme", "read_ahead", CONFIG_SIZE, FIELD(nvme_read_ahead_bytes), 0, 1 * GIB, 0, NULL,
	  "4M", "read behind what was asked for, when nobody waits; 0: nothing" },
	{ "nvme", "iopoll", CONFIG_CHOICE, FIELD(nvme_iopoll), 0, 1, 0, bool_names, "no",
	  "poll for completions of NVMe I/O: less latency, and no sleep while there is any" },
	{ "nvme", "sqpoll", CONFIG_CHOICE, FIELD(nvme_sqpoll), 0, 1, 0, bool_names, "no",
	  "a kernel thread submits NVMe I/O: fewer system calls, and one more core" },
	{ "nvme", "persist", CONFIG_CHOICE, FIELD(nvme_persist), 0, 1, 0, bool_names, "yes",
	  "what the tier holds is found again at the next start" },

	{ "gpu", "device", CONFIG_TEXT, FIELD(gpu_device), 1, 63, 0, NULL, "auto",
	  "auto, none, sim, an ordinal or a UUID (GPU-...)" },
	{ "gpu", "library", CONFIG_TEXT, FIELD(gpu_library), 0, PATH_MAX - 1, 0, NULL, "",
	  "shared object of the CUDA device; empty: the one that was installed with the daemon" },
	{ "gpu", "pool", CONFIG_SIZE, FIELD(gpu_pool_bytes), 16 * MIB, 16 * TIB, CONFIG_OR_ZERO,
	  NULL, "0", "GPU memory for compressed blocks; 0: none" },
	{ "gpu", "staging", CONFIG_SIZE, FIELD(gpu_staging_bytes), 32 * MIB, 4 * GIB, 0, NULL,
	  "128M", "GPU memory for work in flight" },
	{ "gpu", "gpu_share", CONFIG_COUNT, FIELD(gpu_share_percent), 1, 100, 0, NULL, "100",
	  "percent of the GPU's time that coding blocks may cost engines; 100: no bound" },
	{ "gpu", "background_gpu_share", CONFIG_COUNT, FIELD(gpu_background_percent), 1, 100, 0,
	  NULL, "10", "percent of the GPU's time that work which may wait can take" },

	{ "codec", "speculator", CONFIG_CHOICE, FIELD(speculator), 0, CONFIG_SPECULATOR_COUNT - 1,
	  0, speculator_names, "auto", "how blocks are compressed" },
	{ "codec", "plan", CONFIG_CHOICE, FIELD(plan), 0, 1, CONFIG_LIVE, bool_names, "yes",
	  "auto uses layer only where blocks come back sooner with it" },
	{ "codec", "verify", CONFIG_CHOICE, FIELD(verify), 0, 1, CONFIG_LIVE, bool_names, "yes",
	  "decode every block again before it counts as stored" },
	{ "codec", "fit_tokens", CONFIG_COUNTS, FIELD(fit_tokens), 16, 1 << 20, 0, NULL,
	  "512, 4096, 20000",
	  "a namespace's profile is fitted when it has seen this many tokens, rising" },

	{ "profile", "directory", CONFIG_TEXT, FIELD(profile_directory), 0, PATH_MAX - 1, 0, NULL,
	  "", "profiles that skvc-bench calibrate made, *.skvp; empty: profiles in state_dir" },
	{ "profile", "sample", CONFIG_SIZE, FIELD(profile_sample_bytes), 1 * MIB, 1 * TIB, 0, NULL,
	  "1G", "raw blocks kept of a new namespace to fit layer on" },
	{ "profile", "samples", CONFIG_SIZE, FIELD(profile_samples_bytes), 0, 1 * TIB, 0, NULL,
	  "4G", "of all namespaces together" },
	{ "profile", "previous", CONFIG_CHOICE, FIELD(profile_previous), 0, CONFIG_PREVIOUS_AUTO, 0,
	  previous_names, "auto", "layers that layer, and a draft, looks back" },
	{ "profile", "bytes_max", CONFIG_SIZE, FIELD(profile_bytes_max), 1 * MIB, 1 * TIB, 0, NULL,
	  "512M", "the largest profile" },
	{ "profile", "priority", CONFIG_CHOICE, FIELD(profile_priority), 0, 2, 0, priority_names,
	  "idle", "how the threads run that fit layer and code blocks again" },
	{ "profile", "drift_percent", CONFIG_COUNT, FIELD(drift_percent), 0, 1000, CONFIG_LIVE,
	  NULL, "10",
	  "a new profile is fitted when blocks take so much more than it promised; 0: never" },
	{ "profile", "drift_blocks", CONFIG_COUNT, FIELD(drift_blocks), 1, 1 << 20, CONFIG_LIVE,
	  NULL, "256", "in the mean of this many blocks" },

	{ "model", "sequences", CONFIG_COUNT, FIELD(model_sequences), 1, 256, 0, NULL, "4",
	  "prefixes that are kept ready to code their next block" },
	{ "model", "tokens_max", CONFIG_COUNT, FIELD(model_tokens_max), 1, 1 << 20, 0, NULL,
	  "32768", "no block behind so many tokens of its sequence is coded with model" },
	{ "model", "idle", CONFIG_TIME, FIELD(model_idle_ns), 0, 3600 * SEC, CONFIG_LIVE, NULL,
	  "10s", "a prefix that nobody goes on from is kept so long" },
	{ "model", "fit_tokens", CONFIG_COUNT, FIELD(model_fit_tokens), 64, 1 << 20, 0, NULL,
	  "4096",
	  "a namespace without a profile for its model is fitted on so many stored tokens" },
	{ "model", "draft_fit_tokens", CONFIG_COUNT, FIELD(model_draft_tokens), 64, 1 << 20, 0,
	  NULL, "20000", "the same when its model is a draft, whose maps are as large as layer's" },
	{ "model", "gpu", CONFIG_CHOICE, FIELD(model_gpu), 0, 1, 0, bool_names, "yes",
	  "run models on the GPU that serves, in memory of its own" },
	{ "model", "gpu_tokens", CONFIG_COUNT, FIELD(model_gpu_tokens), 16, 16384, 0, NULL, "1024",
	  "of all sequences together in a batch there; up to three are under way" },

	{ "limits", "blocks_max", CONFIG_COUNT, FIELD(blocks_max), 4096, 16 << 20, CONFIG_OR_ZERO,
	  NULL, "0", "blocks in the index; 0: one per 16 KiB of pool and NVMe" },
	{ "limits", "sessions_per_user", CONFIG_COUNT, FIELD(sessions_per_user), 0, 256,
	  CONFIG_LIVE, NULL, "0",
	  "sessions of one user, who is not root; 0: half of sessions_max" },
	{ "limits", "arenas_per_user", CONFIG_SIZE, FIELD(arenas_per_user), 0, 64 * TIB,
	  CONFIG_LIVE, NULL, "0",
	  "arenas of one user, who is not root; 0: half of arena_total, or arena_session if more" },
	{ "limits", "namespaces_per_tenant", CONFIG_COUNT, FIELD(namespaces_per_tenant), 0, 1024,
	  CONFIG_LIVE, NULL, "0",
	  "namespaces of one tenant, whose users are not root; 0: half of namespaces_max" },
	{ "limits", "leases_max", CONFIG_COUNT, FIELD(leases_max), 1, SKVC_ABI_LEASES_MAX, 0, NULL,
	  "1024", "leases of one session" },
	{ "limits", "lease_share", CONFIG_COUNT, FIELD(lease_share_percent), 1, 100, CONFIG_LIVE,
	  NULL, "50",
	  "percent of a pool, beside what others hold, that leases of one tenant may hold, or its pins" },
	{ "limits", "lease_ttl", CONFIG_TIME, FIELD(lease_ttl_ns), 1 * MSEC, SKVC_ABI_TTL_NS_MAX,
	  CONFIG_LIVE, NULL, "30s", "how long a lease lasts when the client does not say" },
	{ "limits", "lease_ttl_max", CONFIG_TIME, FIELD(lease_ttl_max_ns), 1 * MSEC,
	  SKVC_ABI_TTL_NS_MAX, CONFIG_LIVE, NULL, "300s",
	  "the longest lease or pin a client may ask for" },
	{ "limits", "store_wait", CONFIG_TIME, FIELD(store_wait_ns), 0, 60 * SEC, CONFIG_LIVE, NULL,
	  "2s", "a store waits this long for room before it is refused" },
	{ "limits", "event_wait", CONFIG_TIME, FIELD(event_wait_ns), 1 * MSEC, 3600 * SEC,
	  CONFIG_LIVE, NULL, "30s",
	  "a load or store whose ready event was not reached by then is given up" },
	{ "limits", "gpu_wait", CONFIG_TIME, FIELD(gpu_wait_ns), 100 * MSEC, 3600 * SEC,
	  CONFIG_LIVE, NULL, "60s",
	  "the daemon ends when the GPU has not ended work by then: it hangs" },
	{ "limits", "quota", CONFIG_SIZE, FIELD(quota_bytes), 0, 1024 * TIB, CONFIG_LIVE, NULL, "0",
	  "compressed bytes of a tenant that has no section of its own; 0: no limit" },
	{ "limits", "admission", CONFIG_CHOICE, FIELD(admission), 0, 1, CONFIG_LIVE, bool_names,
	  "no",
	  "blocks are refused that are hardly ever asked for again, by what is known of those like it" },
	{ "limits", "borrow", CONFIG_CHOICE, FIELD(quota_borrow), 0, 1, CONFIG_LIVE, bool_names,
	  "yes", "a tenant may use what others leave of their quotas, until they want it" },

	{ "metrics", "listen", CONFIG_TEXT, FIELD(metrics_listen), 0, 63, 0, NULL, "",
	  "address and port where Prometheus finds /metrics, as 127.0.0.1:9472; empty: nowhere" },

	{ "fault", "device", CONFIG_TEXT, FIELD(fault_device), 0, 127, 0, NULL, "",
	  "inject faults into the compute device; for tests only" },
	{ "fault", "nvme", CONFIG_TEXT, FIELD(fault_nvme), 0, 127, 0, NULL, "",
	  "inject faults into NVMe I/O; for tests only" },
	{ "fault", "gpu", CONFIG_TEXT, FIELD(fault_gpu), 0, 127, 0, NULL, "",
	  "inject faults into the GPU device; for tests only" },
};

#define CONFIG_KEYS_COUNT (sizeof(config_keys) / sizeof(config_keys[0]))

_Static_assert(CONFIG_KEYS_COUNT <= CONFIG_KEYS_MAX, "readers keep a mark per key");

const struct config_key *config_key_at(size_t index)
{
	return index < CONFIG_KEYS_COUNT ? &config_keys[index] : NULL;
}

size_t config_key_index(const struct config_key *k)
{
	return (size_t)(k - config_keys);
}

const struct config_key *config_key_next(const struct config_key *k)
{
	return config_key_at(config_key_index(k) + 1);
}

/* ---- text into a bounded buffer ---- */

struct text {
	char *buf;
	size_t cap;
	size_t len;
};

static void text_add(struct text *t, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void text_add(struct text *t, const char *format, ...)
{
	va_list args;
	int n;

	if (t->len + 1 >= t->cap)
		return;
	va_start(args, format);
	n = vsnprintf(t->buf + t->len, t->cap - t->len, format, args);
	va_end(args);
	if (n > 0)
		t->len = (size_t)n < t->cap - t->len ? t->len + (size_t)n : t->cap - 1;
}

/* ---- values in and out ---- */

struct unit {
	const char *name;
	uint64_t factor;
};

/* Largest first: that is how values are printed. */
static const struct unit size_units[] = {
	{ "T", TIB }, { "G", GIB }, { "M", MIB }, { "K", KIB }, { "", 1 }, { NULL, 0 },
};
static const struct unit time_units[] = {
	{ "s", SEC }, { "ms", MSEC }, { "us", USEC }, { "ns", 1 }, { NULL, 0 },
};

int config_parse_u64(const char *s, const char **ret_end, uint64_t *ret)
{
	uint64_t v = 0;
	const char *p = s;

	for (; *p >= '0' && *p <= '9'; p++)
		if (__builtin_mul_overflow(v, 10, &v) ||
		    __builtin_add_overflow(v, (unsigned)(*p - '0'), &v))
			return -ERANGE;
	if (p == s)
		return -EINVAL;
	*ret_end = p;
	*ret = v;
	return 0;
}

static int parse_with_unit(const char *s, const struct unit *units, uint64_t *ret)
{
	const char *end;
	uint64_t v;
	int r;

	r = config_parse_u64(s, &end, &v);
	if (r < 0)
		return r;
	while (*end == ' ')
		end++;
	for (const struct unit *u = units; u->name; u++) {
		if (strcmp(u->name, end) != 0)
			continue;
		if (__builtin_mul_overflow(v, u->factor, &v))
			return -ERANGE;
		*ret = v;
		return 0;
	}
	if (!v && !*end) { /* zero needs no unit */
		*ret = 0;
		return 0;
	}
	return -EINVAL;
}

int config_parse_size(const char *s, uint64_t *ret)
{
	return parse_with_unit(s, size_units, ret);
}

static int parse_port(const char *s, uint16_t *ret)
{
	const char *end;
	uint64_t port;

	if (config_parse_u64(s, &end, &port) < 0 || *end || port > UINT16_MAX)
		return -EINVAL;
	*ret = htons((uint16_t)port);
	return 0;
}

int config_parse_address(const char *s, struct sockaddr_storage *ret, socklen_t *ret_len)
{
	struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)ret;
	struct sockaddr_in *in = (struct sockaddr_in *)ret;
	const char *colon = strrchr(s, ':');
	size_t len = colon ? (size_t)(colon - s) : 0;
	char host[INET6_ADDRSTRLEN];

	memset(ret, 0, sizeof(*ret));
	if (len < 3 || len >= sizeof(host))
		return -EINVAL;
	if (s[0] == '[' && s[len - 1] == ']') {
		(void)snprintf(host, sizeof(host), "%.*s", (int)len - 2, s + 1);
		in6->sin6_family = AF_INET6;
		*ret_len = sizeof(*in6);
		return inet_pton(AF_INET6, host, &in6->sin6_addr) == 1
			       ? parse_port(colon + 1, &in6->sin6_port)
			       : -EINVAL;
	}
	(void)snprintf(host, sizeof(host), "%.*s", (int)len, s);
	in->sin_family = AF_INET;
	*ret_len = sizeof(*in);
	return inet_pton(AF_INET, host, &in->sin_addr) == 1 ? parse_port(colon + 1, &in->sin_port)
							    : -EINVAL;
}

static int parse_whole(const char *s, uint64_t *ret)
{
	const char *end;
	uint64_t v;
	int r = config_parse_u64(s, &end, &v);

	if (r < 0)
		return r;
	if (*end)
		return -EINVAL;
	*ret = v;
	return 0;
}

static int parse_mode(const char *s, uint64_t *ret)
{
	uint64_t v = 0;

	if (!*s || strlen(s) > 5)
		return -EINVAL;
	for (; *s; s++) {
		if (*s < '0' || *s > '7')
			return -EINVAL;
		v = v << 3 | (uint64_t)(*s - '0');
	}
	*ret = v;
	return 0;
}

static int parse_choice(const char *s, const char *const *names, uint64_t *ret)
{
	if (names == bool_names) {
		if (!strcmp(s, "1") || !strcmp(s, "true") || !strcmp(s, "on"))
			s = "yes";
		else if (!strcmp(s, "0") || !strcmp(s, "false") || !strcmp(s, "off"))
			s = "no";
	}
	for (uint64_t i = 0; names[i]; i++)
		if (!strcmp(names[i], s)) {
			*ret = i;
			return 0;
		}
	return -EINVAL;
}

static void format_units(struct text *t, uint64_t v, const struct unit *units)
{
	if (!v) {
		text_add(t, "0");
		return;
	}
	while (units[1].name && v % units->factor)
		units++;
	text_add(t, "%" PRIu64 "%s", v / units->factor, units->name);
}

static void format_number(struct text *t, const struct config_key *k, int64_t v)
{
	switch (k->type) {
	case CONFIG_SIZE:
		format_units(t, (uint64_t)v, size_units);
		break;
	case CONFIG_TIME:
		format_units(t, (uint64_t)v, time_units);
		break;
	case CONFIG_MODE:
		text_add(t, "%04" PRIo64, (uint64_t)v);
		break;
	default:
		text_add(t, "%" PRId64, v);
	}
}

size_t config_key_allowed(const struct config_key *k, char *buf, size_t buf_bytes)
{
	struct text t = { buf, buf_bytes, 0 };

	buf[0] = '\0';
	switch (k->type) {
	case CONFIG_TEXT:
		text_add(&t, "%s at most %" PRId64 " bytes",
			 k->min ? "text of" : "empty, or text of", k->max);
		return t.len;
	case CONFIG_CHOICE:
		for (unsigned i = 0; k->choices[i]; i++)
			text_add(&t, "%s%s", i ? ", " : "", k->choices[i]);
		return t.len;
	case CONFIG_COUNTS:
		text_add(&t, "1 to %u rising counts, each ", CONFIG_FITS_MAX);
		break;
	default:
		break;
	}
	if (k->flags & CONFIG_OR_ZERO)
		text_add(&t, "0, or ");
	format_number(&t, k, k->min);
	text_add(&t, "..");
	format_number(&t, k, k->max);
	if (k->type == CONFIG_SIZE)
		text_add(&t, " (K, M, G, T)");
	else if (k->type == CONFIG_TIME)
		text_add(&t, " (ns, us, ms, s)");
	return t.len;
}

/* The reason why `value` cannot be taken, or NULL with the number in *ret. */
static const char *parse_number(const struct config_key *k, const char *value, int64_t *ret)
{
	bool negative = k->type == CONFIG_INT && value[0] == '-';
	uint64_t v;
	int64_t n;
	int r;

	if (k->type == CONFIG_SIZE)
		r = parse_with_unit(value, size_units, &v);
	else if (k->type == CONFIG_TIME)
		r = parse_with_unit(value, time_units, &v);
	else if (k->type == CONFIG_MODE)
		r = parse_mode(value, &v);
	else if (k->type == CONFIG_CHOICE)
		r = parse_choice(value, k->choices, &v);
	else
		r = parse_whole(value + negative, &v);
	if (r == -EINVAL)
		return k->type == CONFIG_SIZE	  ? "not a size"
		       : k->type == CONFIG_TIME	  ? "not a time with its unit"
		       : k->type == CONFIG_CHOICE ? "not one of the choices"
						  : "not a number";
	if (r < 0 || v > INT64_MAX)
		return "out of range";
	n = negative ? -(int64_t)v : (int64_t)v;
	if ((n < k->min || n > k->max) && !(!n && k->flags & CONFIG_OR_ZERO))
		return "out of range";
	*ret = n;
	return NULL;
}

static const char *set_counts(const struct config_key *k, const char *value, uint64_t *field)
{
	uint64_t counts[CONFIG_FITS_MAX] = { 0 };
	unsigned n = 0;

	for (const char *p = value;; p++) {
		while (*p == ' ')
			p++;
		if (n == CONFIG_FITS_MAX)
			return "too many counts";
		if (config_parse_u64(p, &p, &counts[n]) < 0)
			return "not a list of numbers";
		if ((int64_t)counts[n] < k->min || (int64_t)counts[n] > k->max)
			return "out of range";
		if (n && counts[n] <= counts[n - 1])
			return "not rising";
		n++;
		while (*p == ' ')
			p++;
		if (!*p)
			break;
		if (*p != ',')
			return "not a list of numbers";
	}
	memcpy(field, counts, sizeof(counts));
	return NULL;
}

const char *config_key_set(struct config *c, const struct config_key *k, const char *value)
{
	uint8_t *field = (uint8_t *)c + k->off;
	const char *wrong;
	int64_t v;
	size_t len;

	if (k->type == CONFIG_COUNTS)
		return set_counts(k, value, (uint64_t *)field);
	if (k->type == CONFIG_TEXT) {
		len = strlen(value);
		if (len > (size_t)k->max)
			return "too long";
		if (len < (size_t)k->min)
			return "empty";
		for (size_t i = 0; i < len; i++)
			if ((unsigned char)value[i] < ' ' || (unsigned char)value[i] == 0x7f)
				return "has a control character";
		memset(field, 0, k->field_bytes);
		memcpy(field, value, len);
		return NULL;
	}
	wrong = parse_number(k, value, &v);
	if (wrong)
		return wrong;
	if (k->field_bytes == sizeof(uint64_t))
		*(uint64_t *)field = (uint64_t)v;
	else
		*(uint32_t *)field = (uint32_t)v;
	return NULL;
}

static uint64_t field_value(const struct config *c, const struct config_key *k)
{
	const uint8_t *field = (const uint8_t *)c + k->off;

	return k->field_bytes == sizeof(uint64_t) ? *(const uint64_t *)field
						  : *(const uint32_t *)field;
}

void config_key_value(const struct config *c, const struct config_key *k, char *buf,
		      size_t buf_bytes)
{
	const uint8_t *field = (const uint8_t *)c + k->off;
	struct text t = { buf, buf_bytes, 0 };
	uint64_t v;

	buf[0] = '\0';
	switch (k->type) {
	case CONFIG_TEXT:
		text_add(&t, "%s", (const char *)field);
		break;
	case CONFIG_COUNTS:
		for (unsigned i = 0; i < CONFIG_FITS_MAX && ((const uint64_t *)field)[i]; i++)
			text_add(&t, "%s%" PRIu64, i ? ", " : "", ((const uint64_t *)field)[i]);
		break;
	case CONFIG_CHOICE:
		text_add(&t, "%s", k->choices[field_value(c, k)]);
		break;
	default:
		v = field_value(c, k);
		format_number(&t, k, k->type == CONFIG_INT ? (int32_t)v : (int64_t)v);
	}
}

void config_copy_live(struct config *to, const struct config *from)
{
	for (size_t i = 0; i < CONFIG_KEYS_COUNT; i++) {
		const struct config_key *k = &config_keys[i];

		if (k->flags & CONFIG_LIVE)
			memcpy((uint8_t *)to + k->off, (const uint8_t *)from + k->off,
			       k->field_bytes);
	}
}

void config_default(struct config *ret)
{
	memset(ret, 0, sizeof(*ret));
	for (size_t i = 0; i < CONFIG_KEYS_COUNT; i++) {
		const char *wrong = config_key_set(ret, &config_keys[i], config_keys[i].value);

		assert(!wrong);
		(void)wrong;
	}
}

const char *config_speculator_name(uint32_t speculator)
{
	return speculator < CONFIG_SPECULATOR_COUNT ? speculator_names[speculator] : "unknown";
}

void config_print_help(FILE *out)
{
	const char *section = "";
	char allowed[CONFIG_ALLOWED_BYTES];

	for (size_t i = 0; i < CONFIG_KEYS_COUNT; i++) {
		const struct config_key *k = &config_keys[i];

		if (strcmp(section, k->section) != 0)
			(void)fprintf(out, "%s[%s]\n", i ? "\n" : "", k->section);
		section = k->section;
		(void)config_key_allowed(k, allowed, sizeof(allowed));
		(void)fprintf(out, "# %s\n# allowed: %s%s\n#%s =%s%s\n", k->text, allowed,
			      k->flags & CONFIG_LIVE ? "; a reload changes it" : "", k->key,
			      k->value[0] ? " " : "", k->value);
	}
	(void)fprintf(
		out,
		"\n# Users of one tenant share blocks and a quota; others are tenants of their own.\n"
		"#[tenant NAME]\n# user id, or a range N-M\n#uid = 1000-1999\n"
		"# compressed bytes; 0: no limit\n#quota = 0\n");
}
