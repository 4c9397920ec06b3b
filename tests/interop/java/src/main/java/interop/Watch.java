package interop;

import com.google.protobuf.Duration;
import com.google.rpc.RetryInfo;
import conversations.v1.ConversationsServiceGrpc.ConversationsServiceBlockingV2Stub;
import conversations.v1.ItemChange;
import conversations.v1.WatchItemsRequest;
import conversations.v1.WatchItemsResponse;
import io.grpc.Status;
import io.grpc.StatusException;
import io.grpc.stub.BlockingClientCall;
import java.util.Map;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;

/**
 * Follows a conversation until it has been deleted: opens a stream whenever one ends, behind the last message that was
 * dealt with. What it does at each end of a stream is the table of docs/watch.md.
 *
 * <p>One thread reads; interrupt it to end a read that waits.
 */
final class Watch implements AutoCloseable {

    /** A message; or none, which means: forget what was told so far, for the watch begins anew, as its request says. */
    record Event(WatchItemsResponse message) {
        boolean isReset() {
            return message == null;
        }
    }

    /** What is called after the server has refused the credentials. */
    interface Renewal {
        void run() throws InterruptedException;
    }

    private static final Map<Status.Code, String> STALE = Map.of(
            Status.Code.OUT_OF_RANGE, "RESUME_TOKEN_EXPIRED",
            Status.Code.INVALID_ARGUMENT, "RESUME_TOKEN_INVALID");

    private final ConversationsServiceBlockingV2Stub service;
    private final WatchItemsRequest request;
    private final Recovery recovery = new Recovery();

    private long silenceMillis = 90_000; // three times the pause between two messages of an idle stream
    private Renewal renewal = () -> {};
    private String resumeToken = "";
    private BlockingClientCall<?, WatchItemsResponse> call; // null between two streams
    private WatchItemsResponse last; // null if nothing has to be dealt with
    private boolean isOver;

    /**
     * @param service on a channel of its own, without retries
     * @param request which conversation, and where to begin without a token
     */
    Watch(ConversationsServiceBlockingV2Stub service, WatchItemsRequest request) {
        this.service = service;
        this.request = request;
    }

    /** Begins behind the last message that was dealt with before. */
    Watch behind(String storedToken) {
        resumeToken = storedToken;
        return this;
    }

    /** Gets new credentials for the next stream, after the server has refused the last ones. */
    Watch renewingBy(Renewal renew) {
        renewal = renew;
        return this;
    }

    /** After so long without a message the connection counts as broken. */
    Watch silentAtMost(long millis) {
        silenceMillis = millis;
        return this;
    }

    /**
     * The next event, or null when the conversation has been deleted.
     *
     * <p>This also says that the message before has been dealt with: store what has to survive a crash before, together
     * with its resume token.
     *
     * @throws StatusException when the watch cannot go on
     */
    Event next() throws StatusException, InterruptedException {
        if (last != null) {
            resumeToken = last.getResumeToken();
            isOver = last.getChangesList().stream().anyMatch(ItemChange::hasConversationDeleted);
            last = null;
        }
        while (!isOver) {
            try {
                last = read();
                if (last != null) {
                    recovery.noteMessage();
                    return new Event(last);
                }
                close();
                recovery.afterEnd();
            } catch (StatusException error) {
                call = null;
                if (isStale(error)) {
                    resumeToken = "";
                    return new Event(null);
                }
                recovery.afterError(error);
            }
        }
        close();
        return null;
    }

    /** The next message; null at the end with OK, and if none came for so long. */
    private WatchItemsResponse read() throws StatusException, InterruptedException {
        if (call == null) {
            call = service.watchItems(startingBehindToken());
        }
        try {
            return call.read(silenceMillis, TimeUnit.MILLISECONDS);
        } catch (TimeoutException silent) {
            return null;
        }
    }

    private WatchItemsRequest startingBehindToken() {
        return resumeToken.isEmpty() ? request : request.toBuilder().setResumeToken(resumeToken).build();
    }

    private boolean isStale(StatusException error) {
        String reason = STALE.get(error.getStatus().getCode());
        return !resumeToken.isEmpty() && reason != null && reason.equals(ErrorDetails.reason(error));
    }

    /** Ends the stream. */
    @Override
    public void close() {
        if (call != null) {
            call.cancel("the watch does not need it any more", null);
            call = null;
        }
    }

    /** Returns when a stream that has ended may be opened again. */
    private final class Recovery {

        private static final long FIRST_PAUSE_MILLIS = 100;
        private static final long LONGEST_PAUSE_MILLIS = 2000;

        private boolean hasRenewed;
        private boolean hasMessage;
        private long pauseMillis = FIRST_PAUSE_MILLIS;

        /** The server answers: whatever failed before has passed. */
        void noteMessage() {
            hasRenewed = false;
            hasMessage = true;
            pauseMillis = FIRST_PAUSE_MILLIS;
        }

        /** At once, unless streams end before they have brought anything. */
        void afterEnd() throws InterruptedException {
            if (!hasMessage) {
                pause(0);
            }
            hasMessage = false;
        }

        /** Throws the error if it is final, and if new credentials were refused too. */
        void afterError(StatusException error) throws StatusException, InterruptedException {
            switch (error.getStatus().getCode()) {
                case UNAVAILABLE, RESOURCE_EXHAUSTED, CANCELLED -> pause(retryDelayMillis(error));
                case UNAUTHENTICATED -> {
                    if (hasRenewed) {
                        throw error;
                    }
                    hasRenewed = true;
                    renewal.run();
                }
                default -> throw error;
            }
        }

        private void pause(long leastMillis) throws InterruptedException {
            double jitter = ThreadLocalRandom.current().nextDouble(0.8, 1.2);
            Thread.sleep(leastMillis + (long) (jitter * pauseMillis));
            pauseMillis = Math.min(2 * pauseMillis, LONGEST_PAUSE_MILLIS);
        }
    }

    private static long retryDelayMillis(StatusException error) {
        Duration delay = ErrorDetails.find(error, RetryInfo.class)
                .map(RetryInfo::getRetryDelay)
                .orElse(Duration.getDefaultInstance());
        return TimeUnit.SECONDS.toMillis(delay.getSeconds()) + TimeUnit.NANOSECONDS.toMillis(delay.getNanos());
    }
}
