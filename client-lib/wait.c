/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wait.c - the completion side: take entries off the ring, notice that the daemon is gone, wait.
 *
 * While completions come there is no system call here.  When none come: the clock (no system call
 * either) and daemon_state are read, the socket is looked at every 10 ms, and after spin_ns the thread
 * arms the ring and sleeps on {what the daemon wakes it by, socket}.
 *
 * A job completes exactly once because DONE is only accepted for a LIVE job, by complete() or, once the
 * connection is of no use, by client_fail(); both make it DONE.
 */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "client-lib/client.h"
#include "ipc/fdpass.h"

#define SPIN_BATCH 64 /* ring looks between two looks at the clock */

static void cpu_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield");
#endif
}

/* ---- one completion ---- */

static uint64_t load_word(const struct skvc_session *s, uint32_t rel, uint32_t idx)
{
	const uint64_t *words = (const uint64_t *)(s->link.segment + s->link.layout.args_off + rel);

	return __atomic_load_n(&words[idx], __ATOMIC_RELAXED);
}

static void copy_progress(const struct skvc_session *s, const struct client_job *job)
{
	uint64_t ready = load_word(s, job->result_rel, (job->count + 63) / 64);

	if (ready > job->segments_count)
		ready = job->segments_count;
	/* A running count never goes back, whatever the other side does with the word. */
	if (ready > *job->ret_segments_ready)
		*job->ret_segments_ready = (uint32_t)ready;
}

static void copy_results(const struct skvc_session *s, const struct client_job *job)
{
	if (job->ret_bitmap) {
		uint32_t words = (job->count + 63) / 64;

		for (uint32_t i = 0; i < words; i++)
			job->ret_bitmap[i] = load_word(s, job->result_rel, i);
		if (job->count % 64)
			job->ret_bitmap[words - 1] &= (UINT64_C(1) << job->count % 64) - 1;
	}
	if (job->ret_segments_ready)
		copy_progress(s, job);
}

static void event_add(struct skvc_session *s, struct client_job *job, uint8_t event)
{
	if (!job->internal && !job->untaken)
		client_list_append(s, &s->jobs_ready, job);
	job->untaken |= event;
}

static void job_done(struct skvc_session *s, struct client_job *job)
{
	if (job->ret_segments_ready)
		client_list_remove(s, &s->jobs_progress, job);
	if (job->args_bytes)
		client_args_free(&s->args, job->args_off, job->args_bytes);
	job->args_bytes = 0;
	job->state = CLIENT_JOB_DONE;
	if (!job->orphan) {
		event_add(s, job, CLIENT_EVENT_DONE);
		return;
	}
	if (job->op == SKVC_ABI_OP_LOOKUP && job->done.lease) /* a miss has none */
		s->late_lease = job->done.lease;
	client_job_free(s, job);
}

/* The closed list that skvc.h promises. */
static bool is_listed(int32_t res)
{
	static const int32_t listed[] = { 0,	      -ENOENT, -ENODATA, -EAGAIN, -EDQUOT, -EEXIST,
					  -ECANCELED, -ESTALE, -EINVAL,	 -EPERM,  -EIO,	   -EPIPE };

	for (size_t i = 0; i < sizeof(listed) / sizeof(listed[0]); i++)
		if (res == listed[i])
			return true;
	return false;
}

static void completion_from(const struct skvc_session *s, const struct skvc_abi_cqe *cqe,
			    struct skvc_completion *ret)
{
	memset(ret, 0, sizeof(*ret));
	ret->job = cqe->user_data;
	ret->res = cqe->res;
	ret->reason = cqe->reason;
	ret->event = cqe->kind;
	ret->count = cqe->count;
	ret->pending = cqe->pending;
	ret->lease = cqe->lease;
	ret->raw_bytes = cqe->raw_bytes;
	ret->stored_bytes = cqe->stored_bytes;
	ret->elapsed_ns = cqe->elapsed_ns;
	if (!is_listed(cqe->res)) {
		client_log(s,
			   "skvc: completion with an unlisted result %d, reported as an I/O error",
			   cqe->res);
		ret->res = -EIO;
	}
}

/* NULL, or why the daemon cannot be talked to any more. */
static const char *complete(struct skvc_session *s, const struct skvc_abi_cqe *cqe)
{
	struct client_job *job = client_job_find(s, cqe->user_data);

	if (!job || job->state != CLIENT_JOB_LIVE) {
		client_log(s, "skvc: completion for no live job (0x%llx), ignored",
			   (unsigned long long)cqe->user_data);
		return NULL;
	}
	if (cqe->res > 0 || cqe->count > job->count || cqe->pending > cqe->count)
		return "a completion from the daemon makes no sense";
	switch (cqe->kind) {
	case SKVC_ABI_CQE_SOURCE_FREE:
		if (job->op != SKVC_ABI_OP_STORE || job->source_free_seen) {
			client_log(s, "skvc: SOURCE_FREE out of place, ignored");
			return NULL;
		}
		job->source_free_seen = 1;
		completion_from(s, cqe, &job->source_free);
		event_add(s, job, CLIENT_EVENT_SOURCE_FREE);
		return NULL;
	case SKVC_ABI_CQE_DONE:
		completion_from(s, cqe, &job->done);
		copy_results(s, job);
		job_done(s, job);
		return NULL;
	default:
		/* A later minor may add kinds; it may not make DONE mean less. */
		client_log(s, "skvc: completion of unknown kind %u, ignored", cqe->kind);
		return NULL;
	}
}

static const char *drain(struct skvc_session *s, unsigned *ret_count)
{
	int ready = ring_consume_ready(&s->cq);
	const char *fault = NULL;

	if (ready < 0)
		return "the daemon's completion index is impossible";
	for (int i = 0; i < ready && !fault; i++) {
		struct skvc_abi_cqe cqe;

		ring_consume(&s->cq, &cqe);
		fault = complete(s, &cqe);
	}
	if (ready) {
		ring_consume_done(&s->cq);
		*ret_count += (unsigned)ready;
	}
	return fault;
}

unsigned client_reap(struct skvc_session *s)
{
	unsigned count = 0;
	const char *fault;

	if (s->gone)
		return 0;
	fault = drain(s, &count);
	if (fault) {
		client_fail(s, fault);
		return count + 1;
	}
	s->heard |= count > 0;
	if (count && s->armed) {
		/* We are awake: spare the daemon a write. */
		ring_disarm(&s->cq);
		s->armed = false;
	}
	for (uint32_t i = s->jobs_progress.first; i != CLIENT_NONE; i = s->jobs[i].next)
		copy_progress(s, &s->jobs[i]);
	return count;
}

/* ---- the daemon is gone ---- */

static uint16_t end_reason(const struct skvc_session *s)
{
	const struct skvc_abi_header *h = s->link.header;
	uint64_t reason = SKVC_ABI_REASON_NONE;

	if (s->silent)
		return SKVC_ABI_REASON_NO_ANSWER;

	if (__atomic_load_n(&h->daemon_state, __ATOMIC_ACQUIRE) == SKVC_ABI_DAEMON_CLOSED)
		reason = __atomic_load_n(&h->end_reason, __ATOMIC_RELAXED);
	if (reason == SKVC_ABI_REASON_NONE || reason > UINT16_MAX)
		return SKVC_ABI_REASON_DAEMON_GONE;
	return (uint16_t)reason;
}

void client_fail(struct skvc_session *s, const char *why)
{
	unsigned count = 0;
	uint16_t reason;

	if (s->gone)
		return;
	s->gone = true;
	reason = end_reason(s);
	client_log(s, "skvc: %s (%s); pending jobs end with EPIPE", why, skvc_reason_name(reason));
	/* What was published before is true; a fault in it ends the reading, not the job. */
	(void)drain(s, &count);
	for (uint32_t i = 0; i < s->jobs_max; i++) {
		struct client_job *job = &s->jobs[i];

		if (job->state != CLIENT_JOB_LIVE)
			continue;
		memset(&job->done, 0, sizeof(job->done));
		job->done.job = client_job_handle(s, job);
		job->done.res = -EPIPE;
		job->done.reason = reason;
		job->done.event = SKVC_EVENT_DONE;
		job_done(s, job);
	}
	s->late_lease = 0; /* leases end with the connection */
	/* Makes event_fd readable, and tells a daemon that is still there to end the session too. */
	(void)shutdown(s->link.sock, SHUT_RDWR);
}

void client_give_up(struct skvc_session *s, const char *why)
{
	if (s->gone)
		return;
	s->silent = true;
	client_fail(s, why);
}

/* Something came on the socket that nobody asked for: death, or the daemon's last words. */
static void socket_event(struct skvc_session *s)
{
	union client_answer answer;
	unsigned fds_count = 0;
	int n;

	n = fdpass_recv(s->link.sock, &answer, sizeof(answer), NULL, 0, &fds_count, MSG_DONTWAIT);
	if (n == -EAGAIN)
		return;
	if (n > 0 && !ctl_msg_check_answer(&answer, (size_t)n, CTL_ERROR, 0))
		client_log(s, "skvc: daemon: %s", (const char *)answer.error.text);
	client_fail(s, n > 0 ? "the daemon ended the session" : "the daemon closed the connection");
}

void client_check_alive(struct skvc_session *s, uint64_t now_ns)
{
	struct pollfd fd = { .fd = s->link.sock, .events = POLLIN | POLLRDHUP };

	if (s->gone)
		return;
	if (__atomic_load_n(&s->link.header->daemon_state, __ATOMIC_ACQUIRE) !=
	    SKVC_ABI_DAEMON_OPEN) {
		client_fail(s, "the daemon closed the session");
		return;
	}
	if (s->heard) {
		s->heard = false;
		s->alive_checked_ns = now_ns;
	}
	if (now_ns - s->alive_checked_ns < CLIENT_ALIVE_CHECK_NS)
		return;
	s->alive_checked_ns = now_ns;
	if (poll(&fd, 1, 0) > 0)
		socket_event(s);
}

/* ---- waiting ---- */

/* Of an older daemon it is an eventfd, which gives all at once as well. */
static void drain_wakeups(int fd)
{
	uint64_t values[64];
	ssize_t n;

	do {
		n = read(fd, values, sizeof(values));
	} while (n < 0 && errno == EINTR);
}

static void sleep_until(struct skvc_session *s, uint64_t now_ns, uint64_t deadline_ns)
{
	struct pollfd fds[2] = {
		{ .fd = s->link.cq_fd, .events = POLLIN },
		{ .fd = s->link.sock, .events = POLLIN | POLLRDHUP },
	};
	uint64_t left_ns = deadline_ns - now_ns;
	struct timespec timeout;

	if (left_ns > CLIENT_SLEEP_NS_MAX)
		left_ns = CLIENT_SLEEP_NS_MAX;
	timeout.tv_sec = (time_t)(left_ns / 1000000000ull);
	timeout.tv_nsec = (long)(left_ns % 1000000000ull);
	if (!ring_arm(&s->cq))
		return;
	s->armed = true;
	if (ppoll(fds, 2, &timeout, NULL) > 0) {
		if (fds[0].revents & POLLIN)
			drain_wakeups(s->link.cq_fd);
		if (fds[1].revents)
			socket_event(s);
	}
	if (!s->gone)
		ring_disarm(&s->cq);
	s->armed = false;
}

int client_wait(struct skvc_session *s, client_condition condition, void *user, uint64_t timeout_ns)
{
	uint64_t now_ns, deadline_ns, awake_ns;

	(void)client_reap(s);
	if (condition(s, user))
		return 0;
	now_ns = client_now_ns();
	deadline_ns = timeout_ns > UINT64_MAX - now_ns ? UINT64_MAX : now_ns + timeout_ns;
	awake_ns = now_ns;
	for (;;) {
		client_check_alive(s, now_ns);
		if (condition(s, user))
			return 0;
		if (now_ns >= deadline_ns)
			return -ETIME;
		if (now_ns - awake_ns < s->spin_ns || s->spin_ns == UINT64_MAX) {
			for (int i = 0; i < SPIN_BATCH; i++) {
				if (client_reap(s) && condition(s, user))
					return 0;
				cpu_relax();
			}
			now_ns = client_now_ns();
		} else {
			sleep_until(s, now_ns, deadline_ns);
			(void)client_reap(s);
			now_ns = client_now_ns();
			awake_ns = now_ns;
		}
	}
}

bool client_job_is_over(struct skvc_session *s, void *user)
{
	const struct client_job *job = client_job_find(s, *(const uint64_t *)user);

	return !job || job->state == CLIENT_JOB_DONE;
}

int client_finish(struct skvc_session *s, uint64_t handle, uint64_t timeout_ns,
		  struct skvc_completion *ret)
{
	struct client_job *job;
	int r;

	r = client_wait(s, client_job_is_over, &handle, timeout_ns);
	job = client_job_find(s, handle);
	if (!job)
		return -ESTALE;
	if (r < 0) {
		job->orphan = 1;
		return client_error(
			s, r,
			"the daemon has not done it in time (is it stopped?), and may still do so");
	}
	*ret = job->done;
	client_job_free(s, job);
	return 0;
}

/* ---- the public calls ---- */

static unsigned take(struct skvc_session *s, struct skvc_completion *ret, unsigned max)
{
	unsigned count = 0;

	while (count < max && s->jobs_ready.first != CLIENT_NONE) {
		struct client_job *job = &s->jobs[s->jobs_ready.first];

		if (job->untaken & CLIENT_EVENT_SOURCE_FREE) {
			ret[count++] = job->source_free;
			job->untaken &= (uint8_t)~CLIENT_EVENT_SOURCE_FREE;
		} else {
			ret[count++] = job->done;
			job->untaken = 0;
		}
		if (job->untaken)
			continue;
		client_list_remove(s, &s->jobs_ready, job);
		if (job->state == CLIENT_JOB_DONE)
			client_job_free(s, job);
	}
	return count;
}

int skvc_poll(struct skvc_session *session, struct skvc_completion *ret, unsigned max)
{
	unsigned count;
	int r;

	r = client_enter(session);
	if (r < 0)
		return r;
	if (!ret && max)
		return client_error(session, -EINVAL, "ret is NULL");
	if (max > INT32_MAX)
		max = INT32_MAX;
	(void)client_reap(session);
	count = take(session, ret, max);
	if (!count && max) {
		client_check_alive(session, client_now_ns());
		count = take(session, ret, max);
	}
	if (!count && session->gone && session->jobs_ready.first == CLIENT_NONE)
		return client_error(session, -EPIPE, "the daemon is gone");
	return (int)count;
}

struct wait_set {
	const uint64_t *jobs;
	unsigned count;
	unsigned first_live; /* all before it are over; only moves forward */
};

static bool set_is_over(struct skvc_session *s, void *user)
{
	struct wait_set *set = user;

	while (set->first_live < set->count &&
	       client_job_is_over(s, (void *)&set->jobs[set->first_live]))
		set->first_live++;
	return set->first_live == set->count;
}

int skvc_wait(struct skvc_session *session, const uint64_t *jobs, unsigned count,
	      uint64_t timeout_ns)
{
	struct wait_set set = { .jobs = jobs, .count = count };
	int r;

	r = client_enter(session);
	if (r < 0)
		return r;
	if (!jobs && count)
		return client_error(session, -EINVAL, "jobs is NULL");
	for (unsigned i = 0; i < count; i++) {
		const struct client_job *job = client_job_find(session, jobs[i]);

		if (!job || job->internal)
			return client_error(session, -ESTALE, "jobs[%u]: no such job", i);
	}
	r = client_wait(session, set_is_over, &set, timeout_ns);
	if (r < 0)
		return client_error(session, r, "%u of %u jobs are not done yet",
				    count - set.first_live, count);
	for (unsigned i = 0; i < count; i++)
		if (client_job_find(session, jobs[i])->done.res == -EPIPE)
			return client_error(session, -EPIPE, "the daemon is gone");
	return 0;
}

int skvc_result(struct skvc_session *session, uint64_t handle, struct skvc_completion *ret)
{
	struct client_job *job;
	int r;

	r = client_enter(session);
	if (r < 0)
		return r;
	if (!ret)
		return client_error(session, -EINVAL, "ret is NULL");
	job = client_job_find(session, handle);
	if (!job || job->internal)
		return client_error(session, -ESTALE, "no such job");
	if (job->state == CLIENT_JOB_LIVE && !client_reap(session))
		client_check_alive(session, client_now_ns());
	if (job->state == CLIENT_JOB_LIVE)
		return -EINPROGRESS;
	*ret = job->done;
	client_list_remove(session, &session->jobs_ready, job);
	client_job_free(session, job);
	return 0;
}

/* The last job of the table is kept for this; another one's, given up before, may still have it. */
static bool may_abort(struct skvc_session *s, void *user)
{
	(void)user;
	return s->gone || (s->jobs_used < s->jobs_max && ring_produce_room(&s->sq) != 0);
}

static int abort_submit(struct skvc_session *s, struct client_job *job, uint64_t handle,
			uint64_t deadline_ns)
{
	struct client_op op = { .internal = true,
				.sqe.opcode = SKVC_ABI_OP_ABORT,
				.sqe.arg = handle };

	/* One that was given up may be on its way still. */
	if (client_job_find(s, job->abort_job))
		return 0;
	if (client_wait(s, may_abort, NULL, client_left_ns(deadline_ns)) < 0)
		return -ETIME;
	return job->state == CLIENT_JOB_LIVE ? client_submit(s, &op, &job->abort_job) : 0;
}

int skvc_abort(struct skvc_session *session, uint64_t handle)
{
	uint64_t deadline_ns;
	struct skvc_completion done;
	struct client_job *job;
	int r;

	r = client_enter(session);
	if (r < 0)
		return r;
	job = client_job_find(session, handle);
	if (!job || job->internal)
		return client_error(session, -ESTALE, "no such job");
	deadline_ns = client_deadline_ns(session->timeout_ns);
	if (job->state == CLIENT_JOB_LIVE) {
		r = abort_submit(session, job, handle, deadline_ns);
		if (r < 0 && r != -EPIPE && r != -ETIME)
			return r;
		if (!r && client_job_find(session, job->abort_job))
			(void)client_finish(session, job->abort_job, client_left_ns(deadline_ns),
					    &done);
		if (client_wait(session, client_job_is_over, &handle, client_left_ns(deadline_ns)) <
		    0)
			return client_error(
				session, -ETIME,
				"the job is not over in time, and may still be at work; call again");
	}
	if (job->done.res == -EPIPE)
		return client_error(session, -EPIPE, "the daemon is gone");
	return 0;
}

unsigned skvc_pending(const struct skvc_session *session)
{
	if (!session || !client_is_owner(session))
		return 0;
	return session->jobs_used - session->jobs_internal;
}

int skvc_event_fd(const struct skvc_session *session)
{
	if (!session)
		return -EINVAL;
	return client_is_owner(session) ? session->event_fd : -EOWNERDEAD;
}

int skvc_arm(struct skvc_session *session)
{
	int r;

	r = client_enter(session);
	if (r < 0)
		return r;
	(void)client_reap(session);
	if (!session->gone && session->jobs_ready.first == CLIENT_NONE) {
		/* Old wake-ups first: one that comes after ring_arm() must stay readable. */
		drain_wakeups(session->link.cq_fd);
		session->armed = ring_arm(&session->cq);
		if (session->armed) {
			session->alive_checked_ns = 0;
			session->heard = false;
			client_check_alive(session, client_now_ns());
			if (!session->gone)
				return 1;
		}
		(void)client_reap(session);
	}
	if (session->gone && session->jobs_ready.first == CLIENT_NONE)
		return client_error(session, -EPIPE, "the daemon is gone");
	return 0;
}

int skvc_lease_poll(const struct skvc_session *session, uint64_t lease,
		    struct skvc_lease_status *ret)
{
	uint32_t idx = skvc_abi_lease_word_index(lease);
	uint32_t generation = skvc_abi_handle_generation(lease);
	const struct skvc_abi_lease_word *word;
	struct skvc_lease_status status;

	if (!session || !ret)
		return -EINVAL;
	if (!client_is_owner(session))
		return -EOWNERDEAD;
	if (session->gone)
		return -EPIPE;
	if (!generation || idx >= session->link.layout.leases_count)
		return -ESTALE;
	word = (const struct skvc_abi_lease_word *)(session->link.segment +
						    session->link.layout.leases_off) +
	       idx;
	/*
	 * The lane clears the generation before it reuses a word and sets it last, so equal generations
	 * before and after mean that the fields between belong to this lease.
	 */
	if (__atomic_load_n(&word->generation, __ATOMIC_ACQUIRE) != generation)
		return -ESTALE;
	status.blocks_hit = __atomic_load_n(&word->blocks_hit, __ATOMIC_RELAXED);
	status.blocks_ready = __atomic_load_n(&word->blocks_ready, __ATOMIC_RELAXED);
	status.blocks_lost = __atomic_load_n(&word->blocks_lost, __ATOMIC_RELAXED);
	status.deadline_ns = __atomic_load_n(&word->deadline_ns, __ATOMIC_RELAXED);
	__atomic_thread_fence(__ATOMIC_ACQUIRE);
	if (__atomic_load_n(&word->generation, __ATOMIC_RELAXED) != generation)
		return -ESTALE;
	*ret = status;
	return 0;
}
