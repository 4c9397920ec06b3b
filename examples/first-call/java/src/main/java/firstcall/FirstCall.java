package firstcall;

import conversations.v1.ConversationsServiceGrpc;
import conversations.v1.CreateConversationRequest;
import io.grpc.CallCredentials;
import io.grpc.Grpc;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.TlsChannelCredentials;
import java.io.File;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.concurrent.Executor;
import java.util.concurrent.TimeUnit;

/** Creates a conversation over TLS with a token, and prints its owner. */
public final class FirstCall {

    private static final Metadata.Key<String> AUTHORIZATION =
            Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);

    private FirstCall() {}

    public static void main(String[] arguments) throws IOException {
        var tls = TlsChannelCredentials.newBuilder()
                .trustManager(new File(System.getenv("CONVERSATIONS_TARGET_CA")))
                .build();
        ManagedChannel channel =
                Grpc.newChannelBuilder(System.getenv("CONVERSATIONS_TARGET"), tls).build();
        try {
            var made = ConversationsServiceGrpc.newBlockingStub(channel)
                    .withCallCredentials(new TokenFile(Path.of(System.getenv("CONVERSATIONS_TARGET_TOKEN_FILE"))))
                    .withDeadlineAfter(30, TimeUnit.SECONDS)
                    .createConversation(CreateConversationRequest.getDefaultInstance());
            System.out.println(made.getOwner());
        } finally {
            channel.shutdownNow();
        }
    }

    /** It is read at each call, so that a new token is used at once. */
    private static final class TokenFile extends CallCredentials {

        private final Path file;

        TokenFile(Path file) {
            this.file = file;
        }

        @Override
        public void applyRequestMetadata(RequestInfo call, Executor executor, MetadataApplier applier) {
            executor.execute(() -> {
                try {
                    Metadata headers = new Metadata();
                    headers.put(AUTHORIZATION, "Bearer " + Files.readString(file).strip());
                    applier.apply(headers);
                } catch (IOException error) {
                    applier.fail(Status.UNAUTHENTICATED.withCause(error));
                }
            });
        }
    }
}
