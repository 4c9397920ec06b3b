package interop;

import com.google.protobuf.Duration;
import com.google.protobuf.FieldMask;
import com.google.rpc.BadRequest;
import com.google.rpc.BadRequest.FieldViolation;
import conversations.v1.Conversation;
import conversations.v1.ConversationsServiceGrpc.ConversationsServiceBlockingStub;
import conversations.v1.CreateConversationRequest;
import conversations.v1.DeleteConversationRequest;
import conversations.v1.DeleteConversationsRequest;
import conversations.v1.DeleteConversationsResponse;
import conversations.v1.EraseSubjectRequest;
import conversations.v1.Erasure;
import conversations.v1.ErasureServiceGrpc;
import conversations.v1.ErasureServiceGrpc.ErasureServiceBlockingStub;
import conversations.v1.ExportConversationsRequest;
import conversations.v1.Fork;
import conversations.v1.ForkConversationRequest;
import conversations.v1.GetErasureRequest;
import conversations.v1.ImportConversationsRequest;
import conversations.v1.ImportConversationsResponse;
import conversations.v1.Item;
import conversations.v1.ListConversationsRequest;
import conversations.v1.Record;
import conversations.v1.RewindConversationRequest;
import conversations.v1.TransferServiceGrpc;
import conversations.v1.TransferServiceGrpc.TransferServiceBlockingStub;
import conversations.v1.UndeleteConversationRequest;
import conversations.v1.UpdateConversationRequest;
import io.grpc.Channel;
import io.grpc.Context;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.StreamObserver;
import java.util.ArrayList;
import java.util.List;

/** The steps about how conversations end, come back, branch off and move. Each has conversations of its own. */
final class LifecycleSteps {

    private static final Duration HOUR = seconds(3600);
    private static final Duration HALF_HOUR = seconds(1800);
    private static final Duration TOO_SHORT = seconds(59);
    private static final String NOBODY = "conv_nobody";

    private final Scenario scenario;
    private final Channel channel;
    private final ConversationsServiceBlockingStub service;
    private final TransferServiceBlockingStub transfers;
    private final ErasureServiceBlockingStub erasures;

    LifecycleSteps(Scenario scenario, Channel channel) {
        this.scenario = scenario;
        this.channel = channel;
        this.service = scenario.service();
        this.transfers = TransferServiceGrpc.newBlockingStub(channel);
        this.erasures = ErasureServiceGrpc.newBlockingStub(channel);
    }

    /** A conversation ends when it was told to, until that is taken back. */
    void retention() {
        Conversation made = createWith(HOUR);
        long lives = made.getExpireTime().getSeconds() - made.getCreateTime().getSeconds();
        Check.that(Math.abs(lives - HOUR.getSeconds()) < 60, "the conversation lives for " + lives + " s");
        Check.equal(HALF_HOUR, made.getIdleTtl());
        Conversation kept = service.updateConversation(UpdateConversationRequest.newBuilder()
                .setConversation(Conversation.newBuilder().setId(made.getId()))
                .setUpdateMask(FieldMask.newBuilder().addPaths("expire_time").addPaths("idle_ttl"))
                .build());
        Check.that(!kept.hasExpireTime() && !kept.hasIdleTtl(), "the conversation still ends");
        StatusRuntimeException error =
                Check.fails(Status.Code.INVALID_ARGUMENT, "FIELD_INVALID", () -> createWith(TOO_SHORT));
        BadRequest violations = ErrorDetails.find(error, BadRequest.class).orElseThrow();
        Check.equal(
                List.of("conversation.ttl"),
                violations.getFieldViolationsList().stream().map(FieldViolation::getField).toList());
    }

    private Conversation createWith(Duration ttl) {
        return service.createConversation(CreateConversationRequest.newBuilder()
                .setConversation(Conversation.newBuilder().setTtl(ttl).setIdleTtl(HALF_HOUR))
                .build());
    }

    /** What is behind a place goes, unless somebody has appended meanwhile. */
    void rewind() {
        Scenario made = scenario.branch("one", "two", "three");
        List<Item> before = made.all();
        Check.equal(3L, rewind(made, 1, 3).getLastSequence()); // places are never used again
        Check.equal(before.subList(0, 1), made.all());
        Check.fails(Status.Code.ABORTED, "SEQUENCE_MISMATCH", () -> rewind(made, 0, 2));
    }

    private Conversation rewind(Scenario made, long sequence, long expected) {
        return service.rewindConversation(RewindConversationRequest.newBuilder()
                .setConversationId(made.conversationId())
                .setSequence(sequence)
                .setExpectedLastSequence(expected)
                .setRequestId(Scenario.requestId())
                .build());
    }

    /** A fork has the items up to a place, and is found by its source. */
    void fork() {
        Scenario made = scenario.branch("one", "two");
        Scenario fork = fork(made, ForkConversationRequest.newBuilder().setThroughSequence(1));
        Fork from = Fork.newBuilder().setConversationId(made.conversationId()).setSequence(1).build();
        Check.equal(from, fork.conversation().getForkedFrom());
        Check.equal(made.all().subList(0, 1), fork.all());
        ListConversationsRequest forks = ListConversationsRequest.newBuilder().setFilter(forksOf(made)).build();
        Check.equal(
                List.of(fork.conversationId()),
                service.listConversations(forks).getConversationsList().stream().map(Conversation::getId).toList());
        ForkConversationRequest.Builder nothing = ForkConversationRequest.newBuilder().setThroughItemId("msg_nobody");
        Check.fails(Status.Code.NOT_FOUND, "ITEM_NOT_FOUND", () -> fork(made, nothing));
    }

    private Scenario fork(Scenario source, ForkConversationRequest.Builder request) {
        return scenario.of(service.forkConversation(request
                .setConversationId(source.conversationId())
                .setRequestId(Scenario.requestId())
                .build()));
    }

    /** What was deleted comes back as it was. */
    void undelete() {
        Scenario made = scenario.branch("one");
        String id = made.conversationId();
        List<Item> before = made.all();
        Check.fails(Status.Code.ALREADY_EXISTS, "CONVERSATION_EXISTS", () -> undelete(id));
        service.deleteConversation(DeleteConversationRequest.newBuilder().setConversationId(id).build());
        Check.fails(Status.Code.NOT_FOUND, "CONVERSATION_NOT_FOUND", made::read);
        Check.equal(made.conversation(), undelete(id));
        Check.equal(before, made.all());
        Check.fails(Status.Code.NOT_FOUND, "CONVERSATION_NOT_FOUND", () -> undelete(NOBODY));
    }

    private Conversation undelete(String id) {
        return service.undeleteConversation(
                UndeleteConversationRequest.newBuilder().setConversationId(id).build());
    }

    /** What matches a filter is counted, then deleted. */
    void deleteMany() {
        Scenario made = scenario.branch("one");
        fork(made, ForkConversationRequest.newBuilder());
        fork(made, ForkConversationRequest.newBuilder());
        Check.equal(deleted(2), deleteMany(forksOf(made), true));
        Check.equal(deleted(2), deleteMany(forksOf(made), false));
        Check.equal(deleted(0), deleteMany(forksOf(made), false));
        Check.fails(Status.Code.INVALID_ARGUMENT, "FILTER_INVALID", () -> deleteMany("topic", false));
    }

    private DeleteConversationsResponse deleteMany(String filter, boolean validateOnly) {
        return service.deleteConversations(DeleteConversationsRequest.newBuilder()
                .setFilter(filter)
                .setValidateOnly(validateOnly)
                .build());
    }

    private static DeleteConversationsResponse deleted(int count) {
        return DeleteConversationsResponse.newBuilder().setDeletedCount(count).build();
    }

    /** An export goes on behind its first record; what was erased is imported as it was. */
    void transfer() throws Exception {
        Scenario made = scenario.branch("one", "two");
        Scenario fork = fork(made, ForkConversationRequest.newBuilder());
        List<Item> items = fork.all();
        List<Record> records = exportInTwo(fork.conversationId());
        Check.equal(
                List.of(Record.RecordCase.CONVERSATION, Record.RecordCase.ITEMS, Record.RecordCase.END),
                records.stream().map(Record::getRecordCase).toList());
        erase(made);
        Check.fails(Status.Code.NOT_FOUND, "CONVERSATION_NOT_FOUND", fork::read);
        Check.that(importAll(records), "the conversation was there");
        Check.that(!importAll(records), "the conversation was imported twice");
        Check.equal(items, fork.all());
        Check.fails(Status.Code.NOT_FOUND, "CONVERSATION_NOT_FOUND", () -> export(exportOf(NOBODY)));
    }

    /** Leaves an export after its first record, and goes on with another one. */
    private List<Record> exportInTwo(String id) {
        List<Record> records = new ArrayList<>();
        try (Context.CancellableContext broken = Context.current().withCancellation()) {
            broken.run(() -> records.add(transfers.exportConversations(exportOf(id).build()).next()));
        }
        records.addAll(export(exportOf(id).setResumeToken(records.get(0).getResumeToken())));
        return records;
    }

    private List<Record> export(ExportConversationsRequest.Builder request) {
        List<Record> records = new ArrayList<>();
        transfers.exportConversations(request.build()).forEachRemaining(records::add);
        return records;
    }

    private static ExportConversationsRequest.Builder exportOf(String id) {
        return ExportConversationsRequest.newBuilder().addConversationIds(id);
    }

    /** Erases the forks of a conversation, and reads the receipt. */
    private void erase(Scenario source) {
        String id = Scenario.requestId();
        List<Erasure> told = new ArrayList<>();
        erasures.eraseSubject(EraseSubjectRequest.newBuilder().setFilter(forksOf(source)).setRequestId(id).build())
                .forEachRemaining(told::add);
        Erasure receipt = erasure(id);
        Check.equal(told.get(told.size() - 1), receipt);
        Check.equal(Erasure.State.STATE_DONE, receipt.getState());
        Check.equal(List.of(1L, 2L), List.of(receipt.getConversationCount(), receipt.getItemCount()));
        Check.fails(Status.Code.NOT_FOUND, "ERASURE_NOT_FOUND", () -> erasure(Scenario.requestId()));
    }

    private Erasure erasure(String id) {
        return erasures.getErasure(GetErasureRequest.newBuilder().setErasureId(id).build());
    }

    /** Whether the conversation was created. */
    private boolean importAll(List<Record> records) throws Exception {
        Answers<ImportConversationsResponse> answers = new Answers<>();
        StreamObserver<ImportConversationsRequest> requests =
                TransferServiceGrpc.newStub(channel).importConversations(answers);
        for (Record record : records) {
            requests.onNext(ImportConversationsRequest.newBuilder().setRecord(record).build());
        }
        requests.onCompleted();
        List<ImportConversationsResponse> told = answers.await();
        Check.that(told.size() == 2 && told.get(1).hasImported(), "unexpected: " + told);
        return told.get(1).getImported().getCreated();
    }

    /** The filter that finds them. */
    private static String forksOf(Scenario source) {
        return "forked_from = \"%s\"".formatted(source.conversationId());
    }

    private static Duration seconds(long count) {
        return Duration.newBuilder().setSeconds(count).build();
    }
}
