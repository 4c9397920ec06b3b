package interop;

import io.grpc.stub.StreamObserver;
import java.util.List;
import java.util.Queue;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.TimeUnit;

/** Collects what a stream answers, until it ends. */
final class Answers<T> implements StreamObserver<T> {

    private static final long SECONDS = 30; // a stream has no deadline of its own

    private final Queue<T> received = new ConcurrentLinkedQueue<>();
    private final CompletableFuture<List<T>> all = new CompletableFuture<>();

    /** All answers, in order, once the stream has ended with OK; else its error is thrown. */
    List<T> await() throws Exception {
        return all.get(SECONDS, TimeUnit.SECONDS);
    }

    @Override
    public void onNext(T answer) {
        received.add(answer);
    }

    @Override
    public void onError(Throwable error) {
        all.completeExceptionally(error);
    }

    @Override
    public void onCompleted() {
        all.complete(List.copyOf(received));
    }
}
