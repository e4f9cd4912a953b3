/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nvme_health.c - when the tier is out of service, and how it comes back: see nvme_log.h.  The probe writes a
 * block of the file's header that nothing else uses, and reads it back.  Lane-only.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "daemon/nvme_state.h"
#include "daemon/util/clock.h"

static void go_out(struct nvme_log *log)
{
	if (!log->in_service)
		return;
	log->in_service = false;
	log->out_ns = clock_now_ns();
	stats_set(log->stats, STAT_NVME_HEALTH, 2);
}

void nvme_note_failure(struct nvme_log *log, int error)
{
	assert(error < 0);
	log->error = error;
	log->errors++;
	stats_add(log->stats, STAT_NVME_ERRORS, 1);
	if (error == -ETIMEDOUT || log->errors >= NVME_LOG_ERRORS_MAX)
		go_out(log);
}

/* A device that does not answer is out before its operations end: they may not for a long time. */
bool nvme_serves(struct nvme_log *log)
{
	if (log->in_service && nvme_overdue(log)) {
		log->error = -ETIMEDOUT;
		go_out(log);
	}
	return log->in_service;
}

/* What the probe's block holds: a number that was not there before, all over it. */
static void probe_fill(struct nvme_log *log)
{
	uint64_t word = log->file.epoch ^ (++log->probe_number * 0x9e3779b97f4a7c15ull);

	for (uint32_t i = 0; i < log->file.align_bytes; i += sizeof(word))
		memcpy(log->probe_buf + i, &word, sizeof(word));
}

static bool probe_equal(const struct nvme_log *log)
{
	uint64_t word = log->file.epoch ^ (log->probe_number * 0x9e3779b97f4a7c15ull);

	for (uint32_t i = 0; i < log->file.align_bytes; i += sizeof(word))
		if (memcmp(log->probe_buf + i, &word, sizeof(word)) != 0)
			return false;
	return true;
}

static void probe_end(struct nvme_log *log, int r)
{
	log->probe_state = PROBE_IDLE;
	nvme_gauges(log);
	if (r < 0) {
		log->error = r;
		log->out_ns = clock_now_ns();
		stats_add(log->stats, STAT_NVME_ERRORS, 1);
		return;
	}
	log->in_service = true;
	log->errors = 0;
	stats_set(log->stats, STAT_NVME_HEALTH, 1);
}

static void probe_done(struct uring_op *op, int32_t res)
{
	struct nvme_log *log = (struct nvme_log *)((char *)op - offsetof(struct nvme_log, probe));
	int r = res < 0 ? res : 0;

	if (r == 0 && log->probe_state == PROBE_WRITING) {
		memset(log->probe_buf, 0, log->file.align_bytes);
		r = nvme_read(log, op, URING_BUF_NONE, log->probe_buf, log->file.align_bytes,
			      NVME_FILE_PROBE_OFF);
		log->probe_state = PROBE_READING;
		if (r == 0)
			return;
	} else if (r == 0 && !probe_equal(log)) {
		r = -EIO;
	}
	probe_end(log, r);
}

void nvme_health_tick(struct nvme_log *log, uint64_t now_ns)
{
	int r;

	if (nvme_serves(log) || log->probe_state != PROBE_IDLE || nvme_overdue(log))
		return;
	if (now_ns < clock_add_ns(log->out_ns, log->options.retry_ns))
		return;
	probe_fill(log);
	log->probe.done = probe_done;
	r = nvme_write(log, &log->probe, URING_BUF_NONE, log->probe_buf, log->file.align_bytes,
		       NVME_FILE_PROBE_OFF);
	if (r == 0)
		log->probe_state = PROBE_WRITING;
	nvme_gauges(log);
}

int nvme_log_in_service(const struct nvme_log *log)
{
	return log->in_service && !nvme_overdue(log);
}

int nvme_log_error(const struct nvme_log *log)
{
	return log->error;
}
