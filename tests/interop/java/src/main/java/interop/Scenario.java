package interop;

import com.google.rpc.BadRequest;
import com.google.rpc.BadRequest.FieldViolation;
import conversations.v1.AttributeValues;
import conversations.v1.Conversation;
import conversations.v1.ConversationsServiceGrpc;
import conversations.v1.ConversationsServiceGrpc.ConversationsServiceBlockingStub;
import conversations.v1.AppendItemsRequest;
import conversations.v1.AppendItemsResponse;
import conversations.v1.CreateConversationRequest;
import conversations.v1.CreateItemsRequest;
import conversations.v1.GetConversationRequest;
import conversations.v1.ListItemsRequest;
import conversations.v1.ListItemsResponse;
import conversations.v1.Order;
import conversations.v1.UpdateConversationRequest;
import conversations.v1.Item;
import conversations.v1.NewItem;
import conversations.v1.ItemStatus;
import io.grpc.Channel;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.StreamObserver;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Set;
import java.util.UUID;
import java.util.concurrent.TimeUnit;
import java.util.stream.Collectors;
import java.util.stream.Stream;

/** The steps. Each goes on with the conversation that the first one made. */
final class Scenario {

    private static final int LARGEST_PAGE = 100;

    private final Channel channel;
    private final ConversationsServiceBlockingStub service;
    private final String locked; // a conversation whose row is locked, so that appends wait
    private Conversation conversation;

    Scenario(Channel channel, String locked) {
        this.channel = channel;
        this.service = ConversationsServiceGrpc.newBlockingStub(channel);
        this.locked = locked;
    }

    void create() {
        List<NewItem> items = List.of(
                Items.text("What is gRPC?"),
                Items.call("call_1", "search", "{\"q\": \"gRPC\"}"),
                Items.output("call_1", "found"));
        conversation = service.createConversation(CreateConversationRequest.newBuilder()
                .setConversation(Conversation.newBuilder().putMetadata("topic", "interop"))
                .addAllItems(items)
                .setRequestId(requestId())
                .build());
        Check.equal(3L, conversation.getLastSequence());
        Check.equal("interop", conversation.getMetadataOrThrow("topic"));
        Check.that(!conversation.getEtag().isEmpty(), "the conversation has no etag");
        cameBack(items);
    }

    /** The same with a conversation of its own, which begins with messages of the user. */
    Scenario branch(String... words) {
        return of(service.createConversation(CreateConversationRequest.newBuilder()
                .setConversation(Conversation.newBuilder().putMetadata("topic", "branch"))
                .addAllItems(Stream.of(words).map(Items::text).toList())
                .build()));
    }

    /** The same with another conversation. */
    Scenario of(Conversation other) {
        Scenario made = new Scenario(channel, locked);
        made.conversation = other;
        return made;
    }

    Conversation conversation() {
        return conversation;
    }

    String conversationId() {
        return conversation.getId();
    }

    ConversationsServiceBlockingStub service() {
        return service;
    }

    /** What was set came back as sent, what was unset is unset still, and the server's fields are filled in. */
    private void cameBack(List<NewItem> sent) {
        List<Item> items = list(Order.ORDER_ASCENDING, LARGEST_PAGE);
        Check.equal(List.of("msg", "fc", "fc"), items.stream().map(item -> item.getId().split("_")[0]).toList());
        Check.equal(
                sent.stream().map(NewItem::getItem).toList(),
                items.stream().map(Scenario::asSent).toList());
        for (Item item : items) {
            Check.equal(ItemStatus.ITEM_STATUS_COMPLETED, item.getStatus()); // the default of all three
            Check.that(item.hasCreateTime(), "an item has no create_time");
        }
        Check.that(!items.get(1).getFunctionCall().hasNamespace(), "an unset field is set");
    }

    private static Item asSent(Item stored) {
        return stored.toBuilder().clearId().clearSequence().clearStatus().clearCreateTime().clearCreatedBy().build();
    }

    /** Sends one request twice, as a client does that lost the first answer. */
    void append() {
        CreateItemsRequest request = CreateItemsRequest.newBuilder()
                .setConversationId(conversation.getId())
                .addItems(Items.text("And"))
                .addItems(Items.text("REST?"))
                .setRequestId(requestId())
                .build();
        List<String> first = ids(service.createItems(request).getItemsList());
        Check.equal(2, first.size());
        Check.equal(first, ids(service.createItems(request).getItemsList()));
        Check.equal(5L, read().getLastSequence());
    }

    void pages() {
        Check.equal(List.of(1L, 2L, 3L, 4L, 5L), sequences(list(Order.ORDER_ASCENDING, 2)));
        Check.equal(List.of(5L, 4L, 3L, 2L, 1L), sequences(list(Order.ORDER_DESCENDING, 2)));
    }

    /** Updates twice with the etag of before. */
    void etag() {
        update("first");
        Check.fails(Status.Code.ABORTED, "ETAG_MISMATCH", () -> update("second"));
    }

    private void update(String topic) {
        service.updateConversation(UpdateConversationRequest.newBuilder()
                .setConversation(Conversation.newBuilder()
                        .setId(conversation.getId())
                        .setEtag(conversation.getEtag())
                        .putMetadata("topic", topic))
                .build());
    }

    void notFound() {
        GetConversationRequest nobody =
                GetConversationRequest.newBuilder().setConversationId("conv_nobody").build();
        Check.fails(Status.Code.NOT_FOUND, "CONVERSATION_NOT_FOUND", () -> service.getConversation(nobody));

        ListItemsRequest wrong = ListItemsRequest.newBuilder().setConversationId("x").setPageSize(-1).build();
        StatusRuntimeException error =
                Check.fails(Status.Code.INVALID_ARGUMENT, "FIELD_INVALID", () -> service.listItems(wrong));
        BadRequest violations = ErrorDetails.find(error, BadRequest.class).orElseThrow();
        Check.equal(
                Set.of("conversation_id", "page_size"),
                violations.getFieldViolationsList().stream().map(FieldViolation::getField).collect(Collectors.toSet()));
    }

    /** Tries to share, which the policy permits nobody. */
    void denied() {
        UpdateConversationRequest request = UpdateConversationRequest.newBuilder()
                .setConversation(Conversation.newBuilder()
                        .setId(conversation.getId())
                        .putAttributes("teams", AttributeValues.newBuilder().addValues("search").build()))
                .build();
        Check.fails(Status.Code.PERMISSION_DENIED, "ACTION_DENIED", () -> service.updateConversation(request));
    }

    void deadline() {
        CreateItemsRequest request = CreateItemsRequest.newBuilder()
                .setConversationId(locked)
                .addItems(Items.text("too late"))
                .build();
        long began = System.nanoTime();
        Check.fails(
                Status.Code.DEADLINE_EXCEEDED,
                () -> service.withDeadlineAfter(300, TimeUnit.MILLISECONDS).createItems(request));
        Duration took = Duration.ofNanos(System.nanoTime() - began);
        Check.that(took.toMillis() < 1000, "the deadline of 300 ms passed after " + took);
    }

    /** Sends ahead, and reads the answers after that. */
    void stream() throws Exception {
        Answers<AppendItemsResponse> answers = new Answers<>();
        StreamObserver<AppendItemsRequest> requests =
                ConversationsServiceGrpc.newStub(channel).appendItems(answers);
        for (String words : List.of("one", "two", "three")) {
            requests.onNext(AppendItemsRequest.newBuilder()
                    .setConversationId(conversation.getId())
                    .addItems(Items.text(words))
                    .build());
        }
        requests.onCompleted();
        Check.equal(
                List.of(6L, 7L, 8L),
                answers.await().stream().map(answer -> answer.getAppended().getFirstSequence()).toList());
    }

    Conversation read() {
        return service.getConversation(
                GetConversationRequest.newBuilder().setConversationId(conversation.getId()).build());
    }

    /** Appends one item and returns its id. The request id makes the call safe to retry. */
    String appendOne(String words) {
        CreateItemsRequest request = CreateItemsRequest.newBuilder()
                .setConversationId(conversation.getId())
                .addItems(Items.text(words))
                .setRequestId(requestId())
                .build();
        return service.createItems(request).getItems(0).getId();
    }

    List<Item> all() {
        return list(Order.ORDER_ASCENDING, LARGEST_PAGE);
    }

    /** All items, read page by page. */
    private List<Item> list(Order order, int pageSize) {
        ListItemsRequest.Builder request = ListItemsRequest.newBuilder()
                .setConversationId(conversation.getId())
                .setPageSize(pageSize)
                .setOrder(order);
        List<Item> items = new ArrayList<>();
        ListItemsResponse page;
        do {
            page = service.listItems(request.build());
            items.addAll(page.getItemsList());
            request.setPageToken(page.getNextPageToken());
        } while (page.getHasMore());
        return items;
    }

    static List<String> ids(List<Item> items) {
        return items.stream().map(Item::getId).toList();
    }

    private static List<Long> sequences(List<Item> items) {
        return items.stream().map(Item::getSequence).toList();
    }

    static String requestId() {
        return UUID.randomUUID().toString();
    }
}
