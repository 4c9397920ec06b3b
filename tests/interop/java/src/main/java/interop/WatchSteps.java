package interop;

import conversations.v1.Conversation;
import conversations.v1.ConversationsServiceGrpc;
import conversations.v1.ConversationsServiceGrpc.ConversationsServiceBlockingV2Stub;
import conversations.v1.DeleteConversationRequest;
import conversations.v1.DeleteItemRequest;
import conversations.v1.ItemChange;
import conversations.v1.UpdateConversationRequest;
import conversations.v1.WatchItemsRequest;
import conversations.v1.WatchItemsResponse;
import io.grpc.CallCredentials;
import io.grpc.Channel;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusException;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.Executor;
import java.util.concurrent.FutureTask;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.stream.Collectors;

/** The steps that follow a conversation. Those that write have a conversation of their own. */
final class WatchSteps {

    private static final String END = "the end";
    private static final long SHORT_SILENCE_MILLIS = 500; // an idle stream is silent for 30 s

    private final Scenario scenario;
    private final ConversationsServiceBlockingV2Stub service;
    private final ConversationsServiceBlockingV2Stub scripted;

    /**
     * @param channel for watches
     * @param scripted leads to a service whose streams end as a script says
     */
    WatchSteps(Scenario scenario, Channel channel, Channel scripted) {
        this.scenario = scenario;
        this.service = ConversationsServiceGrpc.newBlockingV2Stub(channel);
        this.scripted = ConversationsServiceGrpc.newBlockingV2Stub(scripted);
    }

    /** All that happens is told in order, each once, also to one that goes on with the token of another. */
    void watch() throws Exception {
        Scenario made = scenario.branch("one", "two");
        String id = made.conversationId();
        String token;
        try (Watch watch = fromBeginning(id)) {
            token = expect(watch, "topic branch", "1 one", "2 two");
        }
        String third = made.appendOne("three");
        try (Watch watch = fromBeginning(id).behind(token)) {
            expect(watch, "3 three");
            made.service().deleteItem(DeleteItemRequest.newBuilder().setConversationId(id).setItemId(third).build());
            expect(watch, "3 deleted");
            made.service().updateConversation(UpdateConversationRequest.newBuilder()
                    .setConversation(Conversation.newBuilder().setId(id).putMetadata("topic", "leaf"))
                    .build());
            expect(watch, "topic leaf");
            made.service().deleteConversation(DeleteConversationRequest.newBuilder().setConversationId(id).build());
            expect(watch, "conversation deleted");
            Check.equal(null, watch.next());
        }
    }

    /** The token of another conversation is refused: the watch says so, and begins anew. */
    void reset() throws Exception {
        String other;
        try (Watch watch = fromNow(service)) {
            other = expect(watch, "topic first");
        }
        try (Watch watch = fromBeginning(scenario.branch("one").conversationId()).behind(other)) {
            Check.that(watch.next().isReset(), "the watch has not begun anew");
            expect(watch, "topic branch", "1 one");
        }
    }

    /** Credentials that are refused are renewed once, and what is missing ends the watch. */
    void refused() throws Exception {
        AtomicInteger renewals = new AtomicInteger();
        Credentials credentials = new Credentials("expired"); // refused, since this server checks none
        ConversationsServiceBlockingV2Stub refused = service.withCallCredentials(credentials);
        try (Watch watch = fromNow(refused).renewingBy(renewals::incrementAndGet)) {
            fails(Status.Code.UNAUTHENTICATED, "CREDENTIALS_INVALID", watch);
            Check.equal(1, renewals.get());
        }
        try (Watch watch = fromNow(refused).renewingBy(() -> credentials.token = "")) {
            expect(watch, "topic first");
        }
        try (Watch watch = fromBeginning("conv_nobody")) {
            fails(Status.Code.NOT_FOUND, "CONVERSATION_NOT_FOUND", watch);
        }
    }

    /** A token, if there is one. */
    private static final class Credentials extends CallCredentials {

        private static final Metadata.Key<String> AUTHORIZATION =
                Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);

        private volatile String token;

        Credentials(String token) {
            this.token = token;
        }

        @Override
        public void applyRequestMetadata(RequestInfo call, Executor executor, MetadataApplier applier) {
            Metadata metadata = new Metadata();
            if (!token.isEmpty()) {
                metadata.put(AUTHORIZATION, "Bearer " + token);
            }
            applier.apply(metadata);
        }
    }

    /** A stream that is silent for too long is opened again: each begins with a message, here without changes. */
    void silence() throws Exception {
        long began = System.nanoTime();
        try (Watch watch = fromNow(service).silentAtMost(SHORT_SILENCE_MILLIS)) {
            expect(watch, "topic first");
            for (int i = 0; i < 3; i++) {
                Check.equal(List.of(), watch.next().message().getChangesList());
            }
        }
        Check.that(System.nanoTime() - began < 10_000_000_000L, "the stream was not opened again");
    }

    /** At each end of a stream it does what docs/watch.md says; the script also looks at what arrives there. */
    void ends() throws Exception {
        Credentials credentials = new Credentials("old");
        WatchItemsRequest request =
                WatchItemsRequest.newBuilder().setConversationId("conv_scripted").setAfterSequence(0).build();
        List<String> events = new ArrayList<>();
        try (Watch watch = new Watch(scripted.withCallCredentials(credentials), request)
                .renewingBy(() -> credentials.token = "new")) {
            for (Watch.Event event = watch.next(); event != null; event = watch.next()) {
                events.add(event.isReset() ? "reset" : event.message().getResumeToken());
            }
        }
        Check.equal(List.of("one", "two", "reset", "three", "reset", "four"), events);
    }

    /** Through restarts of the server, one of them without a warning, every item is told once and in order. */
    void restart() throws Exception {
        FutureTask<List<String>> told = new FutureTask<>(this::idsUntilTheEnd);
        new Thread(told).start();
        Restart restart = new Restart(scenario);
        restart.workThrough("restart?");
        restart.workThrough("kill?");
        scenario.appendOne(END);
        Check.equal(Scenario.ids(scenario.all()), told.get());
    }

    private List<String> idsUntilTheEnd() throws Exception {
        List<String> found = new ArrayList<>();
        try (Watch watch = fromBeginning(scenario.conversationId())) {
            while (true) {
                for (ItemChange change : watch.next().message().getChangesList()) {
                    if (change.hasItem()) {
                        found.add(change.getItem().getId());
                    }
                    if (inWords(change).endsWith(END)) {
                        return found;
                    }
                }
            }
        }
    }

    private Watch fromNow(ConversationsServiceBlockingV2Stub by) {
        return new Watch(by, WatchItemsRequest.newBuilder().setConversationId(scenario.conversationId()).build());
    }

    private Watch fromBeginning(String conversationId) {
        return new Watch(
                service,
                WatchItemsRequest.newBuilder().setConversationId(conversationId).setAfterSequence(0).build());
    }

    /** Reads until so many changes have been told, and compares them; the token of the last message. */
    private static String expect(Watch watch, String... words) throws Exception {
        List<String> told = new ArrayList<>();
        String token = "";
        while (told.size() < words.length) {
            WatchItemsResponse message = watch.next().message();
            message.getChangesList().forEach(change -> told.add(inWords(change)));
            token = message.getResumeToken();
        }
        Check.equal(List.of(words), told);
        return token;
    }

    private static void fails(Status.Code code, String reason, Watch watch) throws Exception {
        try {
            Check.that(false, "want %s, got %s".formatted(code, watch.next()));
        } catch (StatusException error) {
            Check.equal(code, error.getStatus().getCode());
            Check.equal(reason, ErrorDetails.reason(error));
        }
    }

    private static String inWords(ItemChange change) {
        return switch (change.getChangeCase()) {
            case ITEM -> change.getItem().getSequence()
                    + change.getItem().getMessage().getContentList().stream()
                            .map(part -> " " + part.getInputText().getText())
                            .collect(Collectors.joining());
            case DELETED_ITEM -> change.getDeletedItem().getSequence() + " deleted";
            case CONVERSATION -> "topic " + change.getConversation().getMetadataOrThrow("topic");
            case CONVERSATION_DELETED -> "conversation deleted";
            default -> "unexpected: " + change;
        };
    }
}
